"""The stall of a save against the size of the state, as a picture.

python -m benchmarks.sizes docs/stall.svg      # up to 4 GB of state: 20 GB of memory and disk
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import warnings
from pathlib import Path

from benchmarks import saves
from benchmarks.measure import build

SIZES = (10, 30, 100, 300, 1000, 2000, 4000)
STYLES = {
    saves.COPY: ("black", ":", "copy into mapped memory (limit)"),
    "ray_imuckpt, overlap": ("#009e73", "-", 'ray_imuckpt, snapshot="overlap"'),
    "ray_imuckpt": ("#0072b2", "-", "ray_imuckpt"),
    "dcp.async_save": ("#e69f00", "-", "dcp.async_save"),
    "torchsnapshot.async_take": ("#cc79a7", "-", "torchsnapshot.async_take"),
    "torch.save": ("#999999", "--", "torch.save"),
    "Ray's recipe": ("#d55e00", "--", "Ray's recipe: torch.save, then a copy"),
}


def main() -> None:
    """Measure and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--largest", type=int, default=SIZES[-1], help="megabytes")
    parser.add_argument("--dir", type=Path, default=None, help="on the disk to be measured")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    sizes = [size for size in SIZES if size <= options.largest]
    found: dict[str, list[float]] = {}
    for size in sizes:
        root = Path(tempfile.mkdtemp(prefix="imuckpt-sizes-", dir=options.dir))
        try:
            stalls = saves.stall(root, *build(size), options.repeats)
        finally:
            shutil.rmtree(root)
        for name, figure in stalls.items():
            found.setdefault(name, []).append(figure.median)
        print(size, {name: round(f.median, 4) for name, f in stalls.items()}, flush=True)
    draw(options.picture, sizes, found)


def draw(picture: Path, sizes: list[int], found: dict[str, list[float]]) -> None:
    """Both axes logarithmic; each line labelled at its end."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5))
    for name, (color, line, label) in STYLES.items():
        if name in found:
            axes.plot(sizes, found[name], color=color, linestyle=line, marker="o", label=label)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="state of model and AdamW [MB]",
        ylabel="stall of the training loop [s]",
        title="How long a save holds up training",
    )
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(picture, metadata={"Date": None})


if __name__ == "__main__":
    main()
