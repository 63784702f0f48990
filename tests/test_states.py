"""Every kind of state of a model comes back as it was: dtypes, shapes, ties, wrappers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from conftest import Wrapper, adamw, same_bytes, small_model
from ray_imuckpt import Checkpointer
from ray_imuckpt.encoding.tensors import first_of_tied

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
    torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e8m0fnu, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool,
    torch.complex64, torch.complex128,
]  # fmt: skip


class Buffers(nn.Module):
    """Tensors of all kinds as buffers."""

    def __init__(self, fill: bool) -> None:
        super().__init__()
        for dtype in DTYPES:
            raw = torch.arange(64 * dtype.itemsize, dtype=torch.int64).to(torch.uint8)
            raw = raw % 2 if dtype is torch.bool else raw
            self.register_buffer(
                f"as_{dtype}".replace("torch.", ""), (raw if fill else raw * 0).view(dtype)
            )
        base = torch.arange(24.0).reshape(4, 6) if fill else torch.zeros(4, 6)
        self.register_buffer("scalar", torch.tensor(1.5 if fill else 0.0))
        self.register_buffer("empty", torch.empty(0, 3))
        self.register_buffer("transposed", base.t())
        self.register_buffer("strided", base[:, ::2])
        self.register_buffer("expanded", torch.ones(1, 3).mul(2.0 if fill else 0.0).expand(5, 3))
        self.register_buffer(
            "channels_last",
            torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)
            if fill
            else torch.zeros(2, 3, 4, 4),
        )
        self.register_buffer(
            "conjugate", torch.tensor([1 + 2j]).conj() if fill else torch.zeros(1) * 1j
        )


def compiled_from(model: nn.Module) -> nn.Module:
    """Return `model` compiled: a module too, which torch's annotations do not say."""
    compiled: Any = torch.compile(model, backend="eager")
    assert isinstance(compiled, nn.Module)
    return compiled


def bare_of(compiled: nn.Module) -> nn.Module:
    """Return the model that was compiled."""
    return compiled.get_submodule("_orig_mod")


def test_every_dtype_and_layout_comes_back_byte_for_byte(tmp_path: Path) -> None:
    """`read` and `load` give the bytes of every dtype, shape and stride that was saved."""
    model = Buffers(fill=True)
    saved = {name: tensor.resolve_conj().clone() for name, tensor in model.state_dict().items()}
    checkpointer = Checkpointer(tmp_path)
    checkpointer.checkpoint(1, model=model)
    assert same_bytes(dict(checkpointer.read(1).model), saved)
    assert {str(t.dtype) for t in checkpointer.read(1).model.values()} >= {str(d) for d in DTYPES}
    fresh = Buffers(fill=False)
    fresh.expanded = fresh.get_buffer(
        "expanded"
    ).clone()  # torch itself cannot copy into an expanded tensor
    checkpointer.load(fresh)
    assert same_bytes({n: t.resolve_conj() for n, t in fresh.state_dict().items()}, saved)


def test_plain_safetensors_opens_every_tensor_file(tmp_path: Path) -> None:
    """No tensor needs this package to be read."""
    model, optimizer = small_model(), None
    optimizer = adamw(model)
    model(torch.randn(4, 4)).sum().backward()
    optimizer.step()
    Checkpointer(tmp_path, blocking=True).checkpoint(
        1, model=model, optimizer=optimizer, table=torch.ones(3)
    )
    files = sorted((tmp_path / "checkpoint=1").glob("*.safetensors"))
    assert {f.name.split("-")[0] for f in files} == {"model", "model_frozen", "optimizer", "state"}
    names = set()
    for file in files:
        with safetensors.safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no mapping
                names.add(name)
                assert opened.get_tensor(name) is not None
    assert set(model.state_dict()) <= names


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    """Each name has them; where the live model does not tie them, both get the bytes."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(1000, 16)
            self.head = nn.Linear(16, 1000, bias=False)
            self.head.weight = self.embed.weight

    model = Tied()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model.embed.weight.sum().backward()
    optimizer.step()
    checkpointer = Checkpointer(tmp_path, blocking=True)
    checkpointer.checkpoint(1, model=model, optimizer=optimizer)
    file = next((tmp_path / "checkpoint=1").glob("model-*.safetensors"))
    assert file.stat().st_size < 1.5 * model.embed.weight.nbytes
    assert set(checkpointer.read(1).model) == {"embed.weight", "head.weight"}
    fresh = Tied()
    checkpointer.start(fresh, torch.optim.SGD(fresh.parameters(), lr=0.1, momentum=0.9))
    assert fresh.head.weight is fresh.embed.weight
    assert torch.equal(fresh.head.weight, model.head.weight)

    untied = Tied()
    untied.head.weight = nn.Parameter(torch.zeros(1000, 16))
    checkpointer.load(untied)
    assert torch.equal(untied.head.weight, model.head.weight)


def test_extra_state_of_modules_is_part_of_the_model(tmp_path: Path) -> None:
    """What `get_extra_state` gave comes back, and is no tensor of the model."""

    class Counting(nn.Linear):
        calls: Any = None

        def get_extra_state(self) -> Any:
            return {"calls": self.calls, "seen": torch.tensor([1, 2])}

        def set_extra_state(self, state: Any) -> None:
            self.calls = state["calls"]

    counting = Counting(2, 2)
    counting.calls = 41
    model = nn.Sequential(counting)
    checkpointer = Checkpointer(tmp_path)
    checkpointer.checkpoint(1, model=model)
    fresh = Counting(2, 2)
    checkpointer.load(nn.Sequential(fresh))
    assert fresh.calls == 41
    assert set(checkpointer.read(1).model) == {"0.weight", "0.bias"}


def test_compiled_models_have_the_names_of_bare_ones(tmp_path: Path) -> None:
    """`torch.compile`, of the whole or of a part, leaves no trace in a checkpoint."""
    model = small_model()
    compiled = compiled_from(model)
    model[0] = compiled_from(model[0])
    assert "_orig_mod.0._orig_mod.weight" in compiled.state_dict()
    checkpointer = Checkpointer(tmp_path)
    checkpointer.checkpoint(1, model=compiled, optimizer=adamw(compiled))
    loaded = checkpointer.read(1)
    assert set(loaded.model) == set(small_model().state_dict())
    bare = checkpointer.load(small_model(seed=9))
    assert same_bytes(dict(bare.state_dict()), dict(loaded.model))
    again = compiled_from(small_model(seed=8))
    checkpointer.start(again, adamw(again))
    assert same_bytes(dict(bare_of(again).state_dict()), dict(loaded.model))


def test_models_by_keyword_have_the_names_of_bare_ones(tmp_path: Path) -> None:
    """Wrappers of a second model leave no trace either."""
    critic = small_model(1)
    expected = {n: t.clone() for n, t in critic.state_dict().items()}
    Checkpointer(tmp_path).checkpoint(1, model=small_model(), critic=compiled_from(critic))
    fresh = small_model(2)
    fresh[0] = compiled_from(fresh[0])
    Checkpointer(tmp_path).start(small_model(), critic=fresh)
    assert same_bytes(fresh[3].weight, expected["3.weight"])
    assert same_bytes(bare_of(fresh[0]).weight, expected["0.weight"])


def test_extra_state_may_be_a_tensor_of_any_size_or_nothing(tmp_path: Path) -> None:
    """It is not held against the shape of what the live module has."""

    class Growing(nn.Module):
        def __init__(self, seen: Any) -> None:
            super().__init__()
            self.model_extra = nn.Linear(1, 1)
            self.seen = seen

        def get_extra_state(self) -> Any:
            return self.seen

        def set_extra_state(self, state: Any) -> None:
            self.seen = state

    Checkpointer(tmp_path).checkpoint(1, model=Growing(torch.arange(3)))
    for before in (None, torch.zeros(7), {"x": 1}):
        model = Growing(before)
        Checkpointer(tmp_path).load(model)
        assert torch.equal(model.seen, torch.arange(3))


def test_modules_find_their_version_when_they_are_loaded(tmp_path: Path) -> None:
    """What a module reads in its metadata is the version that saved."""

    class Versioned(nn.Linear):
        _version = 3
        found: Any = None

        def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *rest: Any) -> None:
            self.found = metadata.get("version")
            super()._load_from_state_dict(state, prefix, metadata, *rest)

    model = compiled_from(nn.Sequential(Versioned(1, 1), nn.BatchNorm1d(1)))
    Checkpointer(tmp_path, blocking=True).checkpoint(1, model=model)
    first = Versioned(1, 1)
    first._version = 4
    newer = nn.Sequential(first, nn.BatchNorm1d(1))
    for wrapped in (newer, compiled_from(newer)):
        Checkpointer(tmp_path).load(wrapped)
        assert first.found == 3, "what was saved, not what the class is at now"
        first.found = None
        Checkpointer(tmp_path).start(wrapped)
        assert first.found == 3
    Versioned._version = 1  # what every module is that says nothing
    Checkpointer(tmp_path, blocking=True).checkpoint(2, model=nn.Sequential(Versioned(1, 1)))
    Checkpointer(tmp_path).load(newer, 2, strict=False)
    assert first.found == 1


def test_memory_seen_in_two_ways_is_not_tied(tmp_path: Path) -> None:
    """Conjugates and negatives of the same memory are other elements."""

    class Model(nn.Module):
        def __init__(self, *, shared: bool) -> None:
            super().__init__()
            a = torch.tensor([1 + 2j, 3 - 1j]) * (1 if shared else 0)
            self.register_buffer("a", a)
            self.register_buffer("b", a.conj() if shared else a.clone())
            self.register_buffer("c", a.conj().imag if shared else a.real.clone())
            self.register_buffer("d", a.imag if shared else a.real.clone())

    saved = Model(shared=True)
    assert saved.get_buffer("c").is_neg()
    Checkpointer(tmp_path, blocking=True).checkpoint(1, model=saved)
    fresh = Checkpointer(tmp_path).load(Model(shared=False))
    for name, value in saved.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value), name


def test_wrapper_subclasses_without_an_address_are_not_taken_for_tied() -> None:
    """An address of 0 is no address."""
    one, other = Wrapper(torch.ones(2)), Wrapper(torch.zeros(2))
    assert one.data_ptr() == other.data_ptr() == 0
    tied = first_of_tied({"a": one, "b": other, "c": one})
    assert tied == {"a": "a", "b": "b", "c": "a"}


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/pg", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
def test_ddp_wrapped_and_compiled_ddp_have_the_names_of_bare_models(tmp_path: Path) -> None:
    """DDP leaves no trace, around the model or around a part; a user's `module` stays."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left = DistributedDataParallel(nn.Sequential(nn.Linear(2, 2)))
            self.module = nn.Linear(2, 2)

    checkpointer = Checkpointer(tmp_path / "run")
    wrapped = compiled_from(DistributedDataParallel(small_model()))
    checkpointer.checkpoint(1, model=wrapped, optimizer=adamw(wrapped))
    assert set(checkpointer.read(1).model) == set(small_model().state_dict())
    checkpointer.load(DistributedDataParallel(small_model(seed=2)))

    checkpointer.checkpoint(2, model=Pair())
    assert set(checkpointer.read(2).model) == {
        "left.0.weight",
        "left.0.bias",
        "module.weight",
        "module.bias",
    }
    checkpointer.load(Pair(), 2)
