"""Curves of runs, for `plot`: from the log in a run's last checkpoint, and from all metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray_imuckpt.cli import directories, logs
from ray_imuckpt.cli.checking import Verdict, unreadable
from ray_imuckpt.directory import CheckpointDirectory
from ray_imuckpt.errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    UnsupportedFormatError,
)
from ray_imuckpt.units import listed

_EPOCH, _ENTRY = "epoch", "entry"
LOG, METRICS = "log", "metrics"


@dataclass(frozen=True)
class Point:
    """A point of a curve: where it is, and its value; finite numbers."""

    x: float
    value: float


@dataclass(frozen=True)
class Curve:
    """A metric of a run.

    Attributes:
        run: The run directory, as it was named.
        metric: The name of the metric, or of the column of the log.
        source: `LOG` or `METRICS`: where it is from.
        axis: What its points are of: ``epoch``, ``step``, …; ``entry`` of the log.
        points: The points, by falling age.
    """

    run: str
    metric: str
    source: str
    axis: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Curves:
    """The curves of runs.

    Attributes:
        curves: By metric, and of one metric by run.
        without: Run and metric of what was asked for and has no numbers, and what of the run has.
        unread: The checkpoints that could not be read.
    """

    curves: tuple[Curve, ...]
    without: tuple[tuple[str, str, tuple[str, ...]], ...]
    unread: tuple[Verdict, ...]

    @property
    def metrics(self) -> list[str]:
        """Return the names of the metrics."""
        return list({curve.metric: None for curve in self.curves})


def curves(runs: Sequence[str], metrics: Sequence[str] | None) -> Curves:
    """Return the curves of some metrics.

    Args:
        runs: The run directories.
        metrics: Words that choose metrics, see `logs.chosen`; ``None``: all.

    Raises:
        CheckpointNotFoundError: A run has no checkpoints.
        StorageError: One cannot be read.
        ValueError: There is nothing to draw; the error says what there is.
    """
    unread: list[Verdict] = []
    known = {run: _of_run(run, unread) for run in runs}
    names = list({name: None for found in known.values() for name in found})
    wanted = names if metrics is None else logs.chosen(metrics, names)
    drawn = [known[run][name] for name in wanted for run in known if name in known[run]]
    without = [
        (run, name, tuple(known[run])) for name in wanted for run in known if name not in known[run]
    ]
    if not drawn:
        what = "anything" if metrics is None else listed(wanted)
        there = f"there are: {listed(names)}" if names else "there are none in log or metrics"
        raise ValueError(f"no checkpoint has finite numbers for {what}; {there}.")
    return Curves(tuple(drawn), tuple(without if metrics else ()), tuple(unread))


def _of_run(run: str, unread: list[Verdict]) -> dict[str, Curve]:
    """Return the curves of a run by their names; the log goes before the metrics."""
    _, epochs = directories.run_with_checkpoints(run)
    directory = CheckpointDirectory(run, retries=directories.PATIENCE)
    last = directory.index_of_last_checkpoint()
    log: Any = None
    metrics: list[dict[str, Any]] = []
    for epoch in epochs:
        try:
            loaded = directory.read(epoch)
            metrics.append({**loaded.metrics, _EPOCH: epoch})
            log = loaded.log if epoch == last else log
        except (CorruptCheckpointError, UnsupportedFormatError) as error:
            unread.append(unreadable(epoch, directory.path_to_checkpoint(epoch), error))
        except CheckpointNotFoundError:  # by now
            continue
    logged = logs.rows(log)
    of_log = _curves(run, LOG, logged, logs.axis(logged))
    of_metrics = _curves(run, METRICS, metrics, _EPOCH)
    return {**of_log, **{name: of_metrics[name] for name in of_metrics if name not in of_log}}


def _curves(run: str, source: str, table: Sequence[logs.Row], axis: str | None) -> dict[str, Curve]:
    by_name = {}
    for name in logs.columns(table):
        points = [
            Point(float(n) if axis is None else logs.number(row[axis]) or 0.0, value)
            for n, row in enumerate(table, start=1)
            if (value := logs.number(row.get(name))) is not None
        ]
        if points and name not in {axis, *logs.AXES}:
            by_name[name] = Curve(run, name, source, axis or _ENTRY, tuple(points))
    return by_name
