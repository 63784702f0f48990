"""Starting a simulated store, and telling it what to do. Touches processes and sockets."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from tools.simulated_store.control import PATH
from tools.simulated_store.faults import Fault
from tools.simulated_store.meter import Report, Seen
from tools.simulated_store.settings import Settings

_ABOVE = Path(__file__).parents[2]  # where `tools` is found
_PATIENCE = 60  # seconds for the process to start, and for an answer to a command


class SimulatedStore:
    """A store in a process of its own; it ends with the context, or with this process.

    Attributes:
        bucket: The bucket that is there from the beginning.
        endpoint: What clients connect to.
    """

    bucket = "bucket"

    def __init__(self) -> None:
        path = os.pathsep.join([str(_ABOVE), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tools.simulated_store"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
        )
        assert self._process.stdout is not None  # noqa: S101 - it is a pipe
        ports = json.loads(self._process.stdout.readline())
        self.endpoint = f"http://127.0.0.1:{ports['port']}"
        self._control = http.client.HTTPConnection("127.0.0.1", ports["control"], _PATIENCE)
        self.make_bucket(self.bucket)

    def __enter__(self) -> SimulatedStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the process; what the store holds is gone."""
        self._control.close()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.wait(_PATIENCE)

    @property
    def options(self) -> dict[str, Any]:
        """Return the ``storage_options`` for s3fs; the credentials are of nobody."""
        return {"key": "nobody", "secret": "nothing", "endpoint_url": self.endpoint}

    def configure(self, settings: Settings) -> None:
        """Let the store behave so from now on."""
        self._tell("settings", **dataclasses.asdict(settings))

    def fail(self, *faults: Fault) -> None:
        """Put these faults in force instead of all others; none ends them."""
        self._tell("faults", faults=[fault.to_json() for fault in faults])

    def met(self) -> list[int]:
        """Return for each fault in force how many requests it has harmed."""
        found: list[int] = self._tell("met")
        return found

    def report(self) -> Report:
        """Return what was asked since `reset`."""
        found = self._tell("report")
        return Report(**(found | {"log": [Seen(**seen) for seen in found["log"]]}))

    def reset(self) -> None:
        """Count anew."""
        self._tell("reset")

    def start_over(self) -> None:
        """Remove all objects, uploads, faults and settings, come up, and count anew."""
        for command in ("up", "deliver", "clear"):
            self._tell(command)
        self.fail()
        self.configure(Settings())
        self.reset()

    def make_bucket(self, bucket: str) -> None:
        """Make a bucket."""
        self._tell("make bucket", bucket=bucket)

    def objects(self, bucket: str = bucket) -> dict[str, int]:
        """Return the size of each object by its key."""
        found: dict[str, int] = self._tell("objects", bucket=bucket)
        return found

    def uploads(self, bucket: str = bucket) -> list[tuple[str, int]]:
        """Return the key and the number of parts of each upload under way."""
        return [(key, parts) for key, parts in self._tell("uploads", bucket=bucket)]

    def get(self, key: str, bucket: str = bucket) -> bytes:
        """Return an object's bytes, past all faults.

        Raises:
            FileNotFoundError: There is no such object.
        """
        status, body = self._ask("GET", _address(bucket, key))
        if status != http.HTTPStatus.OK:
            raise FileNotFoundError(f"{bucket}/{key}: {body.decode()}")
        return body

    def put(self, key: str, data: bytes, bucket: str = bucket) -> None:
        """Put an object, past all faults."""
        self._ask("PUT", _address(bucket, key), data)

    def delete(self, key: str, bucket: str = bucket) -> None:
        """Remove an object, past all faults."""
        self._tell("delete", bucket=bucket, key=key)

    def deliver(self) -> int:
        """Do what came late (`Action.LATE`); return how many requests that were."""
        done: int = self._tell("deliver")
        return done

    def go_down(self) -> None:
        """Break all connections and refuse new ones, as a process that is killed; objects stay."""
        self._tell("down")

    def come_up(self) -> None:
        """Listen again, at the same endpoint."""
        self._tell("up")

    @contextlib.contextmanager
    def down(self) -> Iterator[None]:
        """Be down for as long as this lasts."""
        self.go_down()
        try:
            yield
        finally:
            self.come_up()

    def _tell(self, command: str, **given: Any) -> Any:
        path = f"{PATH}/{urllib.parse.quote(command)}"
        status, body = self._ask("POST", path, json.dumps(given).encode())
        if status != http.HTTPStatus.OK:
            raise ValueError(f"The simulated store refused {command!r}: {body.decode()}")
        return json.loads(body)

    def _ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        self._control.request(method, path, body)
        answer = self._control.getresponse()
        return answer.status, answer.read()


def _address(bucket: str, key: str) -> str:
    return f"{PATH}/object?{urllib.parse.urlencode({'bucket': bucket, 'key': key})}"
