"""The tables of the object store: what each contender asks, and how long it takes."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from benchmarks.stores.contenders import CLIENTS, CONNECTOR, PEERS, RAW, Surroundings
from benchmarks.stores.transports import CONNECTIONS
from benchmarks.stores.workers import MODEL, RESTORE, SAVE, TASKS, Cost, Worker
from tools.simulated_store import Report, Settings, SimulatedStore

MOST = 300  # MB: what is looked for are ratios, and dcp takes 8 s for 100 MB
_TENSORS = 576
_TINY = 0.001, 3  # MB, in so many tensors

_LARGE = 1_000_000  # bytes
UNSIGNED = {"config_kwargs": {"s3": {"payload_signing_enabled": False}}}
"""Options of a store to which bodies are sent without a signature."""
_SETTLED = 0.1  # seconds: the store counts an answer when it has sent it, a moment after it came

Sample = tuple[Cost, Report]


@dataclass(frozen=True)
class Trial:
    """How much of what is done, and with which store.

    Attributes:
        megabytes: Of the state; at most `MOST` are taken.
        repeats: Of each save and restore.
        latency: Milliseconds before each answer.
        rate: Megabytes a second of a connection.
        unsigned: Whether bodies are sent without a signature, as they are where there is TLS.
    """

    megabytes: float
    repeats: int
    latency: float = 30
    rate: float = 50
    unsigned: bool = False


def peers(scratch: Path, trial: Trial) -> None:
    """Print the tables of all that save and restore a training; `scratch` is a local directory."""
    _tables(PEERS, scratch, trial, tiny=True)


def clients(scratch: Path, trial: Trial) -> None:
    """Print the tables of clients alone; `scratch` as above."""
    missing = find_spec("s3torchconnector") is None
    names = [name for name in CLIENTS if not (name == CONNECTOR and missing)]
    _tables(names, scratch, trial, tiny=False)


def _tables(names: Sequence[str], scratch: Path, trial: Trial, *, tiny: bool) -> None:
    megabytes, repeats = min(trial.megabytes, MOST), trial.repeats
    latency, rate = trial.latency, trial.rate
    settings = Settings(latency=latency / 1000, rate=rate * 1_000_000)
    with SimulatedStore() as store, _workers(names, store, scratch, trial) as workers:
        print(f"\nA simulated store: {latency:g} ms a request, {rate:g} MB/s a connection.")
        store.configure(settings)
        print("Bodies are not signed." if trial.unsigned else "Bodies are signed by SHA-256.")
        if tiny:
            _print_tiny({name: _tiny(store, settings, w) for name, w in workers.items()})
        for name, worker in workers.items():
            worker.begin(_directory(name), megabytes, _TENSORS)
        samples: dict[str, dict[str, list[Sample]]] = {task: {} for task in TASKS}
        for _ in range(repeats):
            for name, worker in workers.items():  # in turn, so that a slow moment meets them all
                _make_room(store)
                for task in TASKS:
                    found = _sample(store, worker, task)
                    samples[task].setdefault(name, []).append(found)
        for task in TASKS:
            shown = megabytes / 3 if task == MODEL else megabytes
            _print(f"{task}, {shown:.0f} MB", shown / (CONNECTIONS * rate), samples[task])


@contextlib.contextmanager
def _workers(
    names: Sequence[str], store: SimulatedStore, scratch: Path, trial: Trial
) -> Iterator[dict[str, Worker]]:
    chosen = UNSIGNED if trial.unsigned else {}
    surroundings = Surroundings(store.options | chosen, store.bucket, scratch)
    with contextlib.ExitStack() as stack:
        yield {n: stack.enter_context(Worker(n, surroundings)) for n in names}


def _make_room(store: SimulatedStore) -> None:
    """Remove what is large. Records stay: a save is measured in the middle of a run."""
    for key, size in store.objects().items():
        if size > _LARGE:
            store.delete(key)


def _directory(name: str) -> str:
    return "run-" + "".join(c if c.isalnum() else "-" for c in name)


def _sample(store: SimulatedStore, worker: Worker, task: str) -> Sample:
    store.reset()
    cost = worker.do(task)
    time.sleep(_SETTLED)
    return cost, store.report()


def _tiny(store: SimulatedStore, settings: Settings, worker: Worker) -> dict[str, Report]:
    """Return what is asked for a state of a few bytes: latency is all that it costs.

    A save is measured behind another one, as most of a run's are.
    """
    store.start_over()
    store.configure(settings)
    worker.begin("tiny", *_TINY)
    worker.do(SAVE)
    return {task: _sample(store, worker, task)[1] for task in (SAVE, RESTORE, MODEL)}


def _print_tiny(found: dict[str, dict[str, Report]]) -> None:
    print("\n| round trips of a tiny state | one after the other | requests |\n|---|---|---|")
    for name, reports in found.items():
        for task, report in reports.items():
            print(f"| {name}: {task} | {report.round_trips} | {_kinds(report)} |", flush=True)


def _print(title: str, limit: float, found: dict[str, list[Sample]]) -> None:
    """Print a table.

    Args:
        title: Of the table.
        limit: Seconds that all connections at their full rate would take.
        found: The samples by contender.
    """
    heads = (
        f"{title}|median s|of {CONNECTIONS} connections' rate|times the raw engine|"
        "processor s|extra MB|MB|connections|requests"
    )
    print(f"\n| {' | '.join(heads.split('|'))} |\n|{'---|' * (heads.count('|') + 1)}")
    raw = _median(found[RAW])
    for name, samples in found.items():
        seconds = _median(samples)
        report = samples[-1][1]
        cells = (
            name,
            f"{seconds:.2f}",
            f"{limit / seconds:.0%}",
            f"{seconds / raw:.2f}",
            f"{statistics.median(cost.processor for cost, _ in samples):.2f}",
            f"{max(cost.megabytes for cost, _ in samples):.0f}",
            f"{(report.bytes_in + report.bytes_out) / 1_000_000:.0f}",
            str(report.peak_requests),
            _kinds(report),
        )
        print(f"| {' | '.join(cells)} |", flush=True)


def _median(samples: Sequence[Sample]) -> float:
    return statistics.median(cost.seconds for cost, _ in samples)


def _kinds(report: Report) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(report.requests.items()))
