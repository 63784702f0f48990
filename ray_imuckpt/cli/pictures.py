"""Curves as a picture, by matplotlib. Touches the file that is written; needs no display."""

from __future__ import annotations

import os
from typing import Any

from ray_imuckpt.cli.curves import Curves
from ray_imuckpt.cli.exporting import check_new, new_file

KINDS = (".png", ".svg", ".pdf")

_FEW = 60  # points that are marked, each of them


def check(file: str) -> None:
    """Raise where no picture could be written.

    Args:
        file: A local path that ends in one of `KINDS`, under which nothing is yet.

    Raises:
        ValueError: It ends in something else, or matplotlib is not installed.
        FileExistsError: Something is there.
        FileNotFoundError: There is no such directory.
    """
    if _kind(file) not in KINDS:
        raise ValueError(f"{file}: a picture is called {', '.join('*' + k for k in KINDS)}.")
    check_new(file)
    _figure_class()


def draw(curves: Curves, file: str) -> None:
    """Write a picture: a panel for each metric, a line in it for each run.

    Args:
        curves: The curves.
        file: See `check`.

    Raises:
        FileExistsError: Something is there by now; it was left as it is.
        OSError: It cannot be written; no file was left.
    """
    runs = list({curve.run: None for curve in curves.curves})
    metrics = curves.metrics
    figure = _figure_class()(figsize=(8, 1.2 + 2.8 * len(metrics)), layout="constrained")
    panels = figure.subplots(len(metrics), 1, squeeze=False)[:, 0]
    for metric, panel in zip(metrics, panels, strict=True):
        drawn = [curve for curve in curves.curves if curve.metric == metric]
        for curve in drawn:
            panel.plot(
                [point.x for point in curve.points],
                [point.value for point in curve.points],
                color=f"C{runs.index(curve.run) % 10}",
                linestyle=("-", "--", ":", "-.")[runs.index(curve.run) // 10 % 4],
                marker="o" if len(curve.points) <= _FEW else None,
                markersize=3,
                linewidth=1.5,
                label=_plain(curve.run),
            )
        panel.set_xlabel(_plain(" / ".join(sorted({curve.axis for curve in drawn}))))
        panel.set_ylabel(_plain(metric))
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
        if all(point.x == int(point.x) for curve in drawn for point in curve.points):
            panel.xaxis.get_major_locator().set_params(integer=True)
        panel.legend(frameon=False, fontsize="small")
    with new_file(file) as target:
        figure.savefig(target, format=_kind(file)[1:], dpi=150)


def _kind(file: str) -> str:
    return os.path.splitext(file)[1].lower()


def _figure_class() -> Any:
    try:
        from matplotlib.figure import Figure  # not pyplot, which looks for a display
    except ImportError:
        raise ValueError(
            "-o needs the package matplotlib: pip install 'ray-imuckpt[plot]'."
        ) from None
    return Figure


def _plain(text: str) -> str:
    """Return a text that is drawn as it is: a dollar would begin a formula, an underscore hide."""
    printable = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)  # fonts lack others
    shown = printable.replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown
