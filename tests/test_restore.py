"""A restore reads straight into live memory, once, and never runs on with a wrong state."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from conftest import adamw, same_bytes, small_model
from ray_imuckpt import (
    Checkpointer,
    CorruptCheckpointError,
    ImuckptError,
    StateMismatchError,
    load,
)
from ray_imuckpt.gang import Gang
from ray_imuckpt.gang.transport import Alone
from ray_imuckpt.loading import reader as reading
from ray_imuckpt.state.objects import take_object
from ray_imuckpt.storage.local import LocalStorage

MEGABYTE = 1024 * 1024


def large(seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Files of several chunks: 12 MiB of weights, a frozen part, 24 MiB of moments."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(1024, 1024), nn.Linear(1024, 2048), nn.Linear(1024, 2049))
    model[2].requires_grad_(requires_grad=False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return model, optimizer


def memory(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[int]:
    """Where every tensor lies."""
    moments = [t for values in optimizer.state.values() for t in values.values()]
    return [t.data_ptr() for t in (*model.state_dict().values(), *moments)]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """Every read: file, offset, length."""
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
        file = name.rsplit("/", 1)[1]
        seen[file] = seen.get(file, 0) + length
    assert seen == stored


def test_the_model_alone_reads_nothing_else(
    tmp_path: Path, reads: list[tuple[str, int, int]]
) -> None:
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
        self.register_buffer("phase", torch.randn(3, dtype=torch.complex128))
        if awkward:
            self.phase = self.phase.conj()
        self.images = nn.Conv2d(3, 4, 3)
        if awkward:
            self.images.to(memory_format=torch.channels_last)


def test_memory_that_cannot_take_the_bytes_is_loaded_as_torch_loads_it(tmp_path: Path) -> None:
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


def test_tied_here_and_not_there_is_loaded_as_torch_loads_it(tmp_path: Path) -> None:
    def build(*, tied: bool) -> nn.Module:
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        if tied:
            model[1].weight = model[0].weight
        return model

    for number, (there, here) in enumerate([(True, False), (False, True), (True, True)], 1):
        saved = build(tied=there)
        Checkpointer(tmp_path, blocking=True).checkpoint(number, model=saved)
        model = load(build(tied=here), tmp_path / f"checkpoint={number}")
        assert model[0].weight.equal(saved[0].weight)
        if not here:
            assert model[1].weight.equal(saved[1].weight)
            assert model[0].weight.data_ptr() != model[1].weight.data_ptr()


def flip(directory: Path, pattern: str, position: int) -> None:
    """Alter one byte of a file."""
    (path,) = directory.glob(pattern)
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("pattern", ["model-*", "model_frozen-*", "optimizer-*"])
def test_altered_bytes_behind_good_ones_fall_back_to_exactly_the_older_state(
    tmp_path: Path, pattern: str, caplog: pytest.LogCaptureFixture
) -> None:
    checkpointer = Checkpointer(tmp_path, blocking=True)
    older, older_optimizer = large()
    checkpointer.checkpoint(1, model=older, optimizer=older_optimizer, log=[1])
    newer, newer_optimizer = large(seed=1)
    checkpointer.checkpoint(2, model=newer, optimizer=newer_optimizer, log=[1, 2])
    flip(tmp_path / "checkpoint=2", pattern, -1)
    model, optimizer = large(seed=2)
    with caplog.at_level(logging.WARNING):
        started = Checkpointer(tmp_path).start(model, optimizer)
    assert "damaged" in caplog.text
    assert started.start_epoch == 2
    assert started.log == [1]
    assert same_bytes(dict(model.state_dict()), dict(older.state_dict()))
    assert same_bytes(optimizer.state_dict(), older_optimizer.state_dict())


def test_altered_bytes_of_an_epoch_asked_for_say_what_the_objects_may_hold(tmp_path: Path) -> None:
    saved, optimizer = large()
    Checkpointer(tmp_path, blocking=True).checkpoint(1, model=saved, optimizer=optimizer)
    flip(tmp_path / "checkpoint=1", "model-*", -1)
    for call in (
        lambda: Checkpointer(tmp_path).start(*large(seed=1), continue_from=1),
        lambda: load(large(seed=1)[0], tmp_path / "checkpoint=1"),
    ):
        with pytest.raises(CorruptCheckpointError, match="may hold a part of this epoch"):
            call()


@pytest.mark.parametrize("damage", ["cut", "gone"])
@pytest.mark.parametrize("pattern", ["model-*", "model_frozen-*", "optimizer-*", "state-*.json"])
def test_a_file_that_is_cut_or_gone_is_found_before_anything_is_changed(
    tmp_path: Path, pattern: str, damage: str
) -> None:
    saved, saved_optimizer = large()
    Checkpointer(tmp_path, blocking=True).checkpoint(1, model=saved, optimizer=saved_optimizer)
    (path,) = (tmp_path / "checkpoint=1").glob(pattern)
    path.unlink() if damage == "gone" else path.write_bytes(path.read_bytes()[:-1])
    model, optimizer = large(seed=1)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(CorruptCheckpointError, match="missing|bytes instead of"):
        Checkpointer(tmp_path).start(model, optimizer, continue_from=1)
    assert same_bytes(dict(model.state_dict()), before)
    assert not same_bytes(optimizer.state_dict(), saved_optimizer.state_dict())


def test_an_older_checkpoint_that_cannot_make_good_for_a_damaged_one_is_an_error(
    tmp_path: Path,
) -> None:
    checkpointer = Checkpointer(tmp_path, blocking=True)
    checkpointer.checkpoint(1, model=nn.ModuleDict({"body": large()[0]}))
    checkpointer.checkpoint(
        2, model=nn.ModuleDict({"body": large(seed=1)[0], "head": nn.Linear(2, 2)})
    )
    flip(tmp_path / "checkpoint=2", "model_frozen-*", -1)
    model = nn.ModuleDict({"body": large(seed=2)[0], "head": nn.Linear(2, 2)})
    with pytest.raises(StateMismatchError, match="could not make good") as caught:
        Checkpointer(tmp_path).start(model, strict=False)
    assert caught.value.missing == ["model.head.bias", "model.head.weight"]
    assert "continue_from=1" in str(caught.value)


class Pair(Alone):
    """Rank 0 of a gang of two whose other rank agrees with everything."""

    world_size = 2

    def __init__(self) -> None:
        self.sent: list[int] = []

    def all_gather(self, payload: bytes) -> list[bytes]:
        return [payload, b""]

    def broadcast_into(self, buffer: torch.Tensor) -> None:
        self.sent.append(len(buffer))


@pytest.mark.parametrize("window", [1, 16 * MEGABYTE, 1024 * MEGABYTE])
def test_a_gang_gets_the_same_bytes_window_by_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    monkeypatch.setattr(reading, "_WINDOW", window)
    saved, _ = large()
    Checkpointer(tmp_path, blocking=True).checkpoint(1, model=saved)
    manifest = Checkpointer(tmp_path).read(1).manifest
    pair = Pair()
    reader = reading.Reader(LocalStorage(str(tmp_path)), "checkpoint=1", manifest, Gang(pair))
    entry = manifest.file("model", "safetensors")
    read = reader.header(entry)
    assert read.length == entry.header_size
    odd = [1, 63, 9 * MEGABYTE + 5]
    targets = [torch.empty(n, dtype=torch.uint8) for n in (*odd, entry.size - sum(odd))]
    reader.fill([(entry, targets)])
    stored = (tmp_path / "checkpoint=1" / entry.name).read_bytes()
    assert torch.cat(targets).numpy().tobytes() == stored
    assert sum(pair.sent) == entry.header_size + entry.size
    assert max(pair.sent) <= max(window, 8 * MEGABYTE)


def test_objects_with_small_and_empty_tensors(tmp_path: Path) -> None:
    """More tensors in a chunk than one system call takes."""
    saved = nn.ParameterList(nn.Parameter(torch.randn(n % 3)) for n in range(3000))
    Checkpointer(tmp_path, blocking=True).checkpoint(1, model=saved)
    model = nn.ParameterList(nn.Parameter(torch.zeros(n % 3)) for n in range(3000))
    load(model, tmp_path / "checkpoint=1")
    assert same_bytes(dict(model.state_dict()), dict(saved.state_dict()))


class Refuses:
    """An object that never takes its state back."""

    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, _: Any) -> None:
        raise RuntimeError("not this one")


class Everything:
    """A run's objects of all kinds, trained a little by `seed`."""

    def __init__(self, seed: int, scaler: Any, **more: Any) -> None:
        self.model = small_model(seed)
        self.optimizer = adamw(self.model)
        critic = small_model(seed + 10)
        self.critic_optimizer = torch.optim.Adam(critic.parameters(), lr=0.1 + seed)
        for model, optimizer in (
            (self.model, self.optimizer),
            (critic, self.critic_optimizer),
        ):
            model(torch.randn(8, 4)).sum().backward()
            optimizer.step()
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(self.optimizer, factor=0.9)
        plateau.step(float(seed))
        self.other = {
            "critic_optimizer": self.critic_optimizer,
            "generator": np.random.default_rng(seed),
            "plateau": plateau,
            "scaler": scaler,
            **more,
        }
        self.critic = [parameter.detach() for parameter in critic.parameters()]
        self.per_rank = {"bits": torch.Generator().manual_seed(seed)}

    def save(self, directory: Path, epoch: int = 1) -> None:
        Checkpointer(directory, blocking=True).checkpoint(
            epoch,
            model=self.model,
            optimizer=self.optimizer,
            per_rank=self.per_rank,
            critic=self.critic,
            **self.other,
        )

    def start(self, directory: Path, **choices: Any) -> Any:
        return Checkpointer(directory).start(
            self.model, self.optimizer, per_rank=self.per_rank, **self.other, **choices
        )

    def state(self) -> Any:
        objects = {**self.other, **self.per_rank}
        return copy.deepcopy(
            [
                dict(self.model.state_dict()),
                self.optimizer.state_dict(),
                *(take_object(objects[name]) for name in sorted(objects)),
            ]
        )


def test_an_object_that_refuses_leaves_all_objects_as_they_were(tmp_path: Path) -> None:
    """By keyword or of a rank: those before it were restored, and are put back."""
    saved = Everything(0, torch.amp.GradScaler("cpu", enabled=False), zz=Refuses())
    saved.save(tmp_path)
    for scaler, error in (
        (torch.amp.GradScaler("cpu"), "switched on here"),
        (torch.amp.GradScaler("cpu", enabled=False), "not this one"),
    ):
        here = Everything(1, scaler, zz=Refuses())
        groups = here.critic_optimizer.param_groups
        before = here.state()
        with pytest.raises(StateMismatchError, match=error):
            here.start(tmp_path)
        assert same_bytes(here.state(), before)
        assert here.critic_optimizer.param_groups is groups


def test_what_cannot_be_put_back_is_named(tmp_path: Path) -> None:
    class Half:
        at = 0

        def state_dict(self) -> dict[str, int]:
            return {"at": self.at}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.at = -1
            raise KeyError("half way")

    class Refusing(nn.Linear):
        def get_extra_state(self) -> int:
            return 1

        def set_extra_state(self, _: int) -> None:
            raise KeyError("half way")

    for number, make in enumerate((Half, lambda: Refusing(2, 2)), 1):
        saved = Everything(0, Refuses(), thing=make())
        saved.other.pop("scaler")
        saved.save(tmp_path, number)
        here = Everything(1, Refuses(), thing=make())
        here.other.pop("scaler")
        before = here.state()
        with pytest.raises(ImuckptError, match="half way(?s:.*)thing may hold a part of epoch"):
            here.start(tmp_path)
        here.other.pop("thing")
        after = here.state()
        assert same_bytes(after[:2], before[:2])
        assert all(any(same_bytes(state, kept) for kept in before) for state in after)


def test_altered_bytes_behind_good_ones_leave_the_objects_by_keyword_as_they_were(
    tmp_path: Path,
) -> None:
    saved, optimizer = large()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    Checkpointer(tmp_path, blocking=True).checkpoint(1, model=saved, scheduler=scheduler)
    flip(tmp_path / "checkpoint=1", "model-*", -1)
    model, optimizer = large(seed=1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 7)
    before = scheduler.state_dict()
    with pytest.raises(CorruptCheckpointError, match="may hold a part of this epoch"):
        Checkpointer(tmp_path).start(model, scheduler=scheduler, continue_from=1)
    assert scheduler.state_dict() == before


def test_a_misfit_behind_a_damaged_checkpoint_says_what_the_objects_may_hold(
    tmp_path: Path,
) -> None:
    checkpointer = Checkpointer(tmp_path, blocking=True)
    checkpointer.checkpoint(1, model=small_model())
    checkpointer.checkpoint(2, model=large()[0])
    flip(tmp_path / "checkpoint=2", "model-*", -1)
    with pytest.raises(StateMismatchError, match="does not fit.*may hold that part"):
        Checkpointer(tmp_path).start(large(seed=1)[0])


def test_what_fails_behind_all_checks_says_that_the_model_may_hold_a_part(tmp_path: Path) -> None:
    class Refusing(torch.optim.SGD):
        def load_state_dict(self, _: Any) -> None:
            raise KeyError("half way")

    def build(seed: int) -> Any:
        model = small_model(seed)
        scheduler = torch.optim.lr_scheduler.StepLR(adamw(model), 1 + seed)
        return model, Refusing(model.parameters(), lr=0.1), scheduler

    model, optimizer, scheduler = build(0)
    Checkpointer(tmp_path, blocking=True).checkpoint(
        1, model=model, optimizer=optimizer, scheduler=scheduler
    )
    model, optimizer, scheduler = build(1)
    before = scheduler.state_dict()
    with pytest.raises(ImuckptError, match="half way(?s:.*)rank=0(?s:.*)may hold a part"):
        Checkpointer(tmp_path).start(model, optimizer, scheduler=scheduler)
    assert scheduler.state_dict() == before


def test_a_model_that_does_not_fit_stays_on_its_device(tmp_path: Path) -> None:
    Checkpointer(tmp_path, blocking=True).checkpoint(1, model=nn.Linear(2, 2))
    model = nn.Linear(3, 3)
    with pytest.raises(StateMismatchError):
        Checkpointer(tmp_path).start(model, device="meta")
    assert model.weight.is_cpu
    assert Checkpointer(tmp_path / "none").start(model, device="meta").model.weight.is_meta


@pytest.mark.parametrize("kind", ["inference_mode", "expanded"])
def test_memory_that_nothing_can_be_written_to_is_refused_before_anything_is_changed(
    tmp_path: Path, kind: str
) -> None:
    class Model(nn.Module):
        def __init__(self, second: torch.Tensor) -> None:
            super().__init__()
            self.first = nn.Linear(2, 2)
            self.register_buffer("second", second)

    Checkpointer(tmp_path, blocking=True).checkpoint(1, model=Model(torch.ones(3, 2)))
    with torch.inference_mode(mode=kind == "inference_mode"):
        second = torch.zeros(3, 2)
    model = Model(second if kind == "inference_mode" else torch.zeros(1, 2).expand(3, 2))
    before = model.first.weight.detach().clone()
    with pytest.raises(StateMismatchError, match=rf"second .*{kind}(?s:.*)clone"):
        Checkpointer(tmp_path).start(model)
    assert same_bytes(model.first.weight, before)
    assert not model.second.any()


def test_load_hooks_see_and_may_change_what_is_loaded(tmp_path: Path) -> None:
    saved = nn.Linear(2, 2)
    Checkpointer(tmp_path, blocking=True).checkpoint(1, model=saved)

    def double(change: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
        model = nn.Linear(2, 2)

        def hook(_: Any, state: dict[str, Any], *__: Any) -> None:
            state["weight"] = change(state["weight"])

        model.register_load_state_dict_pre_hook(hook)
        return load(model, tmp_path / "checkpoint=1")

    assert double(lambda weight: weight * 2).weight.equal(saved.weight * 2)
    assert double(lambda weight: weight.detach().mul_(2)).weight.equal(saved.weight * 2)


def test_a_restored_optimizer_goes_on_as_the_saved_one(tmp_path: Path) -> None:
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
