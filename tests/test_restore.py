"""A restore reads straight into live memory, once; what cannot be read into is copied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from conftest import adamw, same_bytes, small_model
from ray_imuckpt import (
    Checkpointer,
    load,
)
from ray_imuckpt.gang import Gang
from ray_imuckpt.gang.transport import Alone
from ray_imuckpt.loading import filling
from ray_imuckpt.loading import reader as reading
from ray_imuckpt.storage.local import LocalStorage
from support.restores import large, memory

MEGABYTE = 1024 * 1024


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """Record every read: file, offset, length."""
    log: list[tuple[str, int, int]] = []
    real = LocalStorage.read_into

    def read_into(self: Any, name: str, offset: int, views: Any, seen: Any) -> None:
        log.append((name, offset, sum(map(len, views))))
        real(self, name, offset, views, seen)

    monkeypatch.setattr(LocalStorage, "read_into", read_into)
    return log


def test_a_full_restore_lands_in_the_live_memory_and_reads_every_byte_once(
    tmp_path: Path, reads: list[tuple[str, int, int]]
) -> None:
    """No tensor gets other memory, and no byte is read twice but for headers."""
    saved, saved_optimizer = large()
    checkpointer = Checkpointer(tmp_path, blocking=True)
    checkpointer.checkpoint(1, model=saved, optimizer=saved_optimizer)
    model, optimizer = large(seed=1)
    before = memory(model, optimizer)
    Checkpointer(tmp_path).start(model, optimizer)
    assert memory(model, optimizer) == before
    assert same_bytes(dict(model.state_dict()), dict(saved.state_dict()))
    assert same_bytes(optimizer.state_dict(), saved_optimizer.state_dict())
    files = checkpointer.read(1).manifest.files
    stored = {entry.name: entry.size + entry.header_size for entry in files}  # headers come first
    assert max(entry.header_size for entry in files) < 10_000
    seen: dict[str, int] = {}
    for name, _, length in reads:
        file = name.rpartition("/")[2]
        seen[file] = seen.get(file, 0) + length
    assert seen == stored


def test_the_model_alone_reads_nothing_else(
    tmp_path: Path, reads: list[tuple[str, int, int]]
) -> None:
    """`load` reads the model's files and the headers that it needs."""
    saved, optimizer = large()
    Checkpointer(tmp_path, blocking=True).checkpoint(1, model=saved, optimizer=optimizer)
    model, _ = large(seed=1)
    before = [p.data_ptr() for p in model.parameters()]
    load(model, tmp_path / "checkpoint=1")
    assert [p.data_ptr() for p in model.parameters()] == before
    assert same_bytes(dict(model.state_dict()), dict(saved.state_dict()))
    files = {name.rsplit("/", 1)[-1].split("-")[0] for name, _, _ in reads}
    assert "optimizer" not in files
    assert files <= {"model", "model_frozen", "state"}
    tensors = sum(length for name, _, length in reads if ".safetensors" in name)
    bare = sum(p.nbytes for p in model.parameters())
    assert bare <= tensors < bare + 10_000


def test_a_fresh_optimizer_gets_memory_of_its_own(tmp_path: Path) -> None:
    """State that the optimizer does not have yet shares no memory."""
    saved, saved_optimizer = large()
    Checkpointer(tmp_path, blocking=True).checkpoint(1, model=saved, optimizer=saved_optimizer)
    model, _ = large(seed=1)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    Checkpointer(tmp_path).start(model, optimizer)
    assert same_bytes(optimizer.state_dict(), saved_optimizer.state_dict())
    lies = memory(model, optimizer)
    assert len(set(lies)) == len(lies)


class Views(nn.Module):
    """Live tensors whose memory overlaps, is not contiguous, or is not of the stored dtype."""

    def __init__(self, *, awkward: bool) -> None:
        super().__init__()
        base = torch.randn(6, 4)
        self.register_buffer("a", base[:4] if awkward else torch.randn(4, 4))
        self.register_buffer("b", base[2:] if awkward else torch.randn(4, 4))
        wide = torch.randn(3, 5, dtype=torch.float64 if awkward else torch.float32)
        self.wide = nn.Parameter(wide)
        self.turned = nn.Parameter(torch.randn(5, 3).t() if awkward else torch.randn(3, 5))
        phase = torch.randn(3, dtype=torch.complex128)
        self.register_buffer("phase", phase.conj() if awkward else phase)
        self.images = nn.Conv2d(3, 4, 3)
        if awkward:
            images = self.images.weight
            images.data = images.data.to(memory_format=torch.channels_last)


def test_memory_that_cannot_take_the_bytes_is_loaded_as_torch_loads_it(tmp_path: Path) -> None:
    """Overlapping, strided and converted tensors hold what torch would have put there."""
    saved = Views(awkward=False)
    Checkpointer(tmp_path, blocking=True).checkpoint(1, model=saved)
    torch.manual_seed(3)
    ours, theirs = Views(awkward=True), Views(awkward=True)
    theirs.load_state_dict(saved.state_dict())
    strides = [p.stride() for p in ours.parameters()]
    load(ours, tmp_path / "checkpoint=1")
    assert [p.stride() for p in ours.parameters()] == strides
    for name, value in theirs.state_dict().items():
        assert same_bytes(ours.state_dict()[name].resolve_conj(), value.resolve_conj()), name


def test_tied_there_and_not_here_is_loaded_as_torch_loads_it(tmp_path: Path) -> None:
    """Ties are the live model's; each of its tensors gets the bytes saved under its name."""

    def build(*, tied: bool) -> nn.Sequential:
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        if tied:
            model[1].weight = model[0].weight
        return model

    def weight(model: nn.Module, index: int) -> nn.Parameter:
        return model.get_parameter(f"{index}.weight")

    for number, (there, here) in enumerate([(True, False), (True, True)], 1):
        saved = build(tied=there)
        Checkpointer(tmp_path, blocking=True).checkpoint(number, model=saved)
        model = load(build(tied=here), tmp_path / f"checkpoint={number}")
        assert weight(model, 0).equal(weight(saved, 0))
        if not here:
            assert weight(model, 1).equal(weight(saved, 1))
            assert weight(model, 0).data_ptr() != weight(model, 1).data_ptr()


class Pair(Alone):
    """Rank 0 of a gang of two whose other rank needs the same, and does not see the storage."""

    world_size = 2

    def __init__(self) -> None:
        self.sent: list[int] = []

    def all_gather(self, payload: bytes) -> list[bytes]:
        return [payload, payload[:1] + bytes(1) + payload[2:]]

    def broadcast_each(self, parts: Sequence[tuple[int, torch.Tensor]]) -> None:
        self.sent += [len(part) - 1 for _, part in parts]  # how it was read stands behind it


@pytest.mark.parametrize("window", [1, 16 * MEGABYTE, 1024 * MEGABYTE])
def test_a_gang_gets_the_same_bytes_window_by_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    """Whatever the window's size, and wherever tensors end in it."""
    monkeypatch.setattr(filling, "WINDOW", window)
    saved, _ = large()
    Checkpointer(tmp_path, blocking=True).checkpoint(1, model=saved)
    manifest = Checkpointer(tmp_path).read(1).manifest
    pair = Pair()
    reader = reading.Reader(LocalStorage(str(tmp_path / "checkpoint=1")), manifest, Gang(pair))
    entry = manifest.file("model", "safetensors")
    assert entry is not None
    read = reader.header(entry)
    assert read.length == entry.header_size
    odd = [1, 63, 9 * MEGABYTE + 5]
    targets = [torch.empty(n, dtype=torch.uint8) for n in (*odd, entry.size - sum(odd))]
    reader.fill(lambda: (None, [(entry, targets)]))
    stored = (tmp_path / "checkpoint=1" / entry.name).read_bytes()
    assert torch.cat(targets).numpy().tobytes() == stored
    assert sum(pair.sent) == entry.size
    assert max(pair.sent) <= max(window, 8 * MEGABYTE)


def test_objects_with_small_and_empty_tensors(tmp_path: Path) -> None:
    """More tensors in a chunk than one system call takes."""
    saved = nn.ParameterList(nn.Parameter(torch.randn(n % 3)) for n in range(3000))
    Checkpointer(tmp_path, blocking=True).checkpoint(1, model=saved)
    model = nn.ParameterList(nn.Parameter(torch.zeros(n % 3)) for n in range(3000))
    load(model, tmp_path / "checkpoint=1")
    assert same_bytes(dict(model.state_dict()), dict(saved.state_dict()))


def test_load_hooks_see_and_may_change_what_is_loaded(tmp_path: Path) -> None:
    """A hook gets tensors that are not the live ones."""
    saved = nn.Linear(2, 2)
    Checkpointer(tmp_path, blocking=True).checkpoint(1, model=saved)

    def double(change: Callable[[torch.Tensor], torch.Tensor]) -> nn.Linear:
        model = nn.Linear(2, 2)

        def hook(_: Any, state: dict[str, Any], *__: Any) -> None:
            state["weight"] = change(state["weight"])

        model.register_load_state_dict_pre_hook(hook)
        return load(model, tmp_path / "checkpoint=1")

    assert double(lambda weight: weight * 2).weight.equal(saved.weight * 2)
    assert double(lambda weight: weight.detach().mul_(2)).weight.equal(saved.weight * 2)


def test_a_restored_optimizer_goes_on_as_the_saved_one(tmp_path: Path) -> None:
    """One more step of both ends in the same bytes."""
    model = small_model()
    optimizer = adamw(model)
    Checkpointer(tmp_path, blocking=True).checkpoint(1, model=model, optimizer=optimizer)
    other = small_model(seed=1)
    fresh = adamw(other)
    Checkpointer(tmp_path).start(other, fresh)
    for m, o in ((model, optimizer), (other, fresh)):
        torch.manual_seed(5)
        m(torch.randn(4, 4)).sum().backward()
        o.step()
    assert same_bytes(dict(model.state_dict()), dict(other.state_dict()))
