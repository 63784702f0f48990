"""Checkpoints with right checksums that no save of ours has made, and what reading them does.

Run as a program, with a directory to work in: it does everything that reads a checkpoint with each
forgery, in limits of memory and of the processor's time, and prints what came of it as JSON.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import resource
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from conftest import adamw, small_model
from ray_imuckpt import Checkpointer, ImuckptError, load
from ray_imuckpt.cli import main
from ray_imuckpt.encoding import chunks
from ray_imuckpt.repository.records import seal

MEMORY = 300 * 2**20  # bytes that a forgery may take
SECONDS = 120  # of the processor, for all of them
EPOCHS = 2


class Forged:
    """The checkpoint of epoch 2, to be altered, beside a sound one of epoch 1."""

    def __init__(self, directory: Path) -> None:
        self.top = directory
        self.here = directory / f"checkpoint={EPOCHS}"
        self.manifest = json.loads((self.here / "manifest.json").read_bytes())
        del self.manifest["checksum"]

    def seal(self) -> None:
        """Write the manifest, with its right checksum."""
        (self.here / "manifest.json").write_bytes(seal(self.manifest))

    def entry(self, part: str, suffix: str = "safetensors") -> dict[str, Any]:
        """What the manifest says of a file."""
        found = [f for f in self.manifest["files"] if f["part"] == part]
        return next(f for f in found if f["name"].endswith(suffix))

    def path(self, part: str, suffix: str = "safetensors") -> Path:
        """Where a file is."""
        return self.here / self.entry(part, suffix)["name"]

    def write(self, part: str, data: bytes, suffix: str = "safetensors") -> None:
        """Replace a file, with right checksums of its chunks and its header."""
        entry = self.entry(part, suffix)
        self.path(part, suffix).unlink()
        (self.here / entry["name"]).write_bytes(data)
        spans = chunks.ranges(len(data), entry["chunk_size"])
        entry.update(
            size=len(data), checksums=[chunks.checksum([data[begin:end]]) for begin, end in spans]
        )
        if suffix == "safetensors":
            length = min(8 + int.from_bytes(data[:8], "little"), len(data))
            entry.update(header_size=length, header_checksum=chunks.checksum([data[:length]]))
        self.seal()

    def header(self, part: str, change: Callable[[dict[str, Any]], object]) -> None:
        """Alter the header of a file of tensors."""
        data = self.path(part).read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        fields = json.loads(data[8:end])
        change(fields)
        text = json.dumps(fields).encode()
        self.write(part, len(text).to_bytes(8, "little") + text + data[end:])

    def trees(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Alter the trees of the ``state`` part."""
        fields = json.loads(self.path("state", "json").read_bytes())
        change(fields)
        self.write("state", json.dumps(fields).encode(), "json")


def make(directory: Path) -> None:
    """Two epochs of a small training, with a bit of everything."""
    model = small_model()
    optimizer = adamw(model)
    checkpointer = Checkpointer(directory, blocking=True)
    for epoch in range(1, EPOCHS + 1):
        model(torch.ones(3, 4)).sum().backward()
        optimizer.step()
        checkpointer.checkpoint(
            epoch, model=model, optimizer=optimizer, log=[{"epoch": epoch}], metrics={"loss": 0.5},
            x=np.arange(4), generator=torch.Generator(), per_rank={"own": torch.Generator()},
        )  # fmt: skip


def uses(directory: Path) -> dict[str, Callable[[], Any]]:
    """Everything that reads a checkpoint."""
    checkpointer = Checkpointer(directory, blocking=True)

    def start(what: Any) -> int:
        model = small_model(seed=5)
        return checkpointer.start(model, adamw(model), continue_from=what).start_epoch

    def read() -> None:
        loaded = checkpointer.read(EPOCHS)
        _ = loaded.metrics, loaded.model, loaded.model_extra, loaded.optimizer
        _ = loaded.log, loaded.other, loaded.ranks, loaded.classes, loaded.objects

    def go_on() -> None:
        model = small_model(seed=5)
        optimizer = adamw(model)
        begin = checkpointer.start(model, optimizer).start_epoch
        checkpointer.checkpoint(begin, model=model, optimizer=optimizer)

    def command(*words: str) -> Callable[[], Any]:
        return lambda: main([words[0], str(directory), *words[1:]])

    return {
        "start": lambda: start(EPOCHS),
        "last": lambda: start("last"),
        "load": lambda: load(small_model(seed=5), directory / f"checkpoint={EPOCHS}"),
        "read": read,
        "verify": lambda: checkpointer.verify(EPOCHS),
        "prune": lambda: checkpointer.prune(keep_last=1, dry_run=True),
        "best": lambda: checkpointer.prune(keep_best=("loss", "min"), dry_run=True),
        "ls": command("ls"),
        "show": command("show", "2"),
        "plot": command("plot"),
        "diff": command("diff", "1", "2"),
        "verify all": command("verify"),
        "go on": go_on,
    }


def told(use: Callable[[], Any]) -> str:
    """What came of it: a value, the name of an error of ours, or a fault."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            value = use()
    except ImuckptError as error:
        return f"error: {type(error).__name__}"
    except BaseException as error:  # noqa: BLE001 - which it is is the answer
        return f"fault: {type(error).__name__}: {error!s:.200}"
    return str(value) if isinstance(value, int) else "done"


def replaced(path: Path, kind: str) -> None:
    """Put what is no file in the place of one."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "socket":
        here = os.getcwd()
        os.chdir(path.parent)  # the name of a socket may not be long
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
        os.chdir(here)
    else:
        path.touch()
        os.truncate(path, 10 * 2**30)


KINDS = ("pipe", "directory", "device", "socket", "10 GB")


def run(directory: Path) -> dict[str, Any]:
    """What came of every use of every forgery, and the memory that they took at most."""
    from support.damage.cases import CASES

    make(directory / "sound")
    results: dict[str, Any] = {"sound": {n: told(u) for n, u in uses(directory / "sound").items()}}
    shutil.rmtree(directory / "sound")
    make(directory / "sound")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open("/proc/self/statm", encoding="ascii") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + 2 * MEMORY, mapped + 2 * MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    for number, (name, forge) in enumerate(CASES.items()):
        here = directory / str(number)
        shutil.copytree(directory / "sound", here)
        forge(Forged(here))
        results[name] = {use: told(call) for use, call in uses(here).items()}
        shutil.rmtree(here)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"results": results, "memory": (after - before) * 1024}


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    print(json.dumps(run(Path(sys.argv[1]))))
