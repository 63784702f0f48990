"""The panel of what a run resumes: rows, drawn on a terminal, or two lines. Touches rich."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence

import torch

from ray_imuckpt import units
from ray_imuckpt._version import __version__
from ray_imuckpt.gang import Gang
from ray_imuckpt.loading.stored import LoadedCheckpoint
from ray_imuckpt.loading.targets import Targets
from ray_imuckpt.reporting.lines import Lines, write
from ray_imuckpt.state.objects import is_stateful
from ray_imuckpt.state.optimizer_options import Options, changed, options_of

Rows = Sequence[tuple[str, str]]
"""Labels and what they stand before."""

_RUN_ID = 12  # characters of one that are shown
_OPTIONS = 4  # of an optimizer that are shown


def tell(
    lines: Lines,
    gang: Gang,
    targets: Targets,
    loaded: LoadedCheckpoint,
    took: float,
    built: Sequence[Options],
) -> None:
    """Tell what was resumed: as a panel on a terminal if rich is there, as two lines otherwise.

    Args:
        lines: Where they go.
        gang: The gang.
        targets: What was restored.
        loaded: What it was restored from.
        took: Seconds.
        built: The options of the optimizer's groups before it was restored.
    """
    size = units.size(sum(entry.size for entry in loaded.manifest.files))
    rows = list(_rows(gang, targets, loaded, built))
    words = (loaded.epoch, size, units.seconds(took), loaded.url)
    restored = "; ".join(f"{label}: {value}" for label, value in rows)
    drawn = lines.on_terminal() and _draw(
        f"Resumed from epoch {loaded.epoch}",
        [("from", loaded.url), *rows, ("took", f"{units.seconds(took)} for {size}")],
    )
    say = lines.record if drawn else lines.tell
    say("Resumed from epoch %d: %s in %s from %s.", *words)
    say("%s.", restored[:1].upper() + restored[1:])


def _rows(
    gang: Gang, targets: Targets, loaded: LoadedCheckpoint, built: Sequence[Options]
) -> Iterator[tuple[str, str]]:
    manifest = loaded.manifest
    yield "restored", ", ".join(_restored(targets, loaded))
    step = "" if loaded.step is None else f", step {loaded.step}"
    yield "saved", f"{manifest.created[:19].replace('T', ' ')} UTC by run {_run(loaded)}{step}"
    yield "gang", units.amount(gang.world_size, "rank")
    options = changed(built, options_of(targets.optimizer))
    differences = [*_differences(gang, loaded), *options[:_OPTIONS]]
    if len(options) > _OPTIONS:
        differences.append(f"and {len(options) - _OPTIONS} more options of the optimizer")
    if differences:
        yield "differs", ", ".join(differences)


def _run(loaded: LoadedCheckpoint) -> str:
    return loaded.manifest.run_id[:_RUN_ID]


def _restored(targets: Targets, loaded: LoadedCheckpoint) -> Iterator[str]:
    yield "model"
    if targets.optimizer is not None and loaded.has_optimizer:
        yield "optimizer"
    log = loaded.log
    if log:
        yield f"log of {len(log)}" if isinstance(log, list) else "log"
    yield from sorted(n for n, v in targets.other.items() if is_stateful(v) and n in loaded.objects)
    yield from (f"per_rank[{name!r}]" for name in sorted({*targets.per_rank} & {*loaded.per_rank}))
    if loaded.rank_here is not None:
        yield "random state"


def _differences(gang: Gang, loaded: LoadedCheckpoint) -> Iterator[str]:
    """Yield what is otherwise than when the checkpoint was saved."""
    ranks = loaded.manifest.world_size
    if ranks != gang.world_size:
        yield f"saved by {units.amount(ranks, 'rank')}"
    here = {
        "ray_imuckpt": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    for name, version in here.items():
        then = loaded.manifest.versions.get(name, version)
        if then != version:
            yield f"{name} {then} then, {version} now"
    left = loaded.left_out
    if left.missing or left.unexpected:
        yield f"{len(left.missing) + len(left.unexpected)} names left out"


def _draw(title: str, rows: Rows) -> bool:
    """Draw a panel, if rich is installed; return whether it is."""
    try:
        from rich.console import Console
        from rich.panel import Panel
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return False
    table = Table.grid(padding=(0, 2))
    for label, value in rows:
        table.add_row(Text(label, style="dim"), Text(value, overflow="fold"))
    console = Console(stderr=True)
    try:
        with console.capture() as captured:
            console.print(Panel(table, title=Text(title), title_align="left", expand=False))
    except Exception:  # noqa: BLE001 - rich's own affair, on rank 0 alone: lines will do
        return False
    write(captured.get())
    return True
