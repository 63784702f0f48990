"""The process of a simulated store: ``python -m tools.simulated_store``. Touches standard streams.

Its first line is JSON: the ports. It ends when its standard input does, and so never outlives
whoever started it.
"""

from __future__ import annotations

import json
import sys
import threading

from tools.simulated_store.control import ControlServer
from tools.simulated_store.service import Service


def main() -> None:
    """Serve until the standard input ends."""
    service = Service()
    service.up()
    control = ControlServer(service)
    threading.Thread(target=control.serve_forever, daemon=True).start()
    ports = {"port": service.port, "control": control.server_address[1]}
    print(json.dumps(ports), flush=True)  # noqa: T201 - read by whoever started this
    sys.stdin.read()


if __name__ == "__main__":
    main()
