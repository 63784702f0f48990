"""A store that speaks S3 on the loopback, in a process of its own, as slow and faulty as is wanted.

It keeps its objects in memory, answers path-style requests and asks for no signature. What S3
promises it keeps: objects appear as a whole, conditions hold, a part that is missing fails the
completion of its upload, parts but the last have 5 MiB. An upload that was completed is unknown
from then on, as most servers other than Amazon's have it.

`SimulatedStore` starts one and tells it what to do: how slow it is (`Settings`), which requests
fail and how (`Fault`), when it is down. It tells what was asked (`Report`) and what it holds,
past the client that is tried. Standard library only.
"""

from __future__ import annotations

from tools.simulated_store.client import SimulatedStore
from tools.simulated_store.faults import Action, Fault
from tools.simulated_store.meter import Report, Seen
from tools.simulated_store.settings import Settings

__all__ = ["Action", "Fault", "Report", "Seen", "Settings", "SimulatedStore"]
