"""What a model's own way of saving changes or leaves out is brought back all the same, or told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from conftest import same_bytes
from ray_imuckpt import Checkpointer, ImuckptError, StateMismatchError, UnsupportedStateError


def save(directory: Path, model: nn.Module, **objects: Any) -> None:
    Checkpointer(directory, blocking=True).checkpoint(1, model=model, **objects)


def tensors(model: nn.Module) -> dict[str, Any]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def renaming(model: nn.Module, *, copies: bool = False) -> nn.Module:
    """Return the model, with other names in its state dict that no hook takes back."""

    def rename(_: nn.Module, state: dict[str, Any], _prefix: str, _metadata: Any) -> None:
        for key in list(state):
            value = state.pop(key)
            state[f"inner.{key}"] = value.clone() if copies else value

    model.register_state_dict_post_hook(rename)
    return model


def convolution() -> nn.Module:
    """Return one whose weight is not contiguous, and so not read straight into its place."""
    return nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@pytest.mark.parametrize("build", [convolution, lambda: nn.Linear(3, 4).double()])
def test_what_is_renamed_while_it_is_saved_comes_back(
    tmp_path: Path, build: Callable[[], nn.Module]
) -> None:
    """Torch's load_state_dict would pass over names that it does not know, and say nothing."""
    model = renaming(build())
    save(tmp_path, model, second=model)
    other, second = renaming(build()), renaming(build().float())
    Checkpointer(tmp_path).start(other, second=second)
    assert same_bytes(tensors(other), tensors(model))
    assert same_bytes(tensors(second), tensors(model.float()))


def test_copies_under_other_names_are_refused_by_name(tmp_path: Path) -> None:
    """What would be put into a copy would be lost."""
    save(tmp_path, renaming(nn.Linear(3, 4), copies=True))
    with pytest.raises(ImuckptError, match=r"gives copies under names .* inner\.weight"):
        Checkpointer(tmp_path).start(renaming(nn.Linear(3, 4), copies=True))


class Adapter(nn.Module):
    """Saves its adapter alone, as what it adapts is downloaded."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(2, 2)
        self.adapter = nn.Linear(2, 2)

    def state_dict(self, *arguments: Any, **options: Any) -> dict[str, Any]:  # type: ignore[override]
        state = super().state_dict(*arguments, **options)
        return {name: value for name, value in state.items() if "adapter" in name}

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        return super().load_state_dict(state_dict, strict=False, assign=assign)


def test_trained_parameters_that_the_state_dict_leaves_out_are_refused(tmp_path: Path) -> None:
    """A body that is trained with its adapter would begin anew; alone the adapter may be saved."""
    model = Adapter()
    optimizer = torch.optim.SGD(model.adapter.parameters(), lr=0.1)
    save(tmp_path, model, optimizer=optimizer)
    optimizer.add_param_group({"params": list(model.body.parameters())})
    with pytest.raises(UnsupportedStateError, match=r"param_groups\[1\]\['params'\]\[0\]"):
        Checkpointer(tmp_path).checkpoint(2, model=model, optimizer=optimizer)


class Pair(nn.Module):
    """Two layers, of which one may be the other."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(2, 2), nn.Linear(2, 2)
        if tied:
            self.other.weight = self.one.weight


def test_two_tensors_that_are_one_now_are_told_of(tmp_path: Path) -> None:
    """Unless they held the same: then nothing is lost."""
    two = Pair(tied=False)
    save(tmp_path, two)
    told = r"one\.weight and other\.weight are one tensor here(?s:.*)may hold a part"
    one, checkpointer = Pair(tied=True), Checkpointer(tmp_path)
    for restore in (lambda: checkpointer.load(one), lambda: checkpointer.start(one)):
        with pytest.raises(ImuckptError, match=told) as raised:
            restore()
        assert type(raised.value) is ImuckptError, "others say that nothing was changed"
        assert str(raised.value).count("What to do") == 1
    with torch.no_grad():
        two.other.weight.copy_(two.one.weight.fill_(torch.nan))
    save(tmp_path, two)
    tied = Checkpointer(tmp_path).load(Pair(tied=True))
    assert same_bytes(dict(tied.state_dict()), dict(two.state_dict()))


class Wrapped(nn.Module):
    """Called as what `torch.compile` returns, and more than that."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._orig_mod = nn.Linear(2, 2, bias=False)
        setattr(self, name, nn.Parameter(torch.zeros(2)))


def test_a_module_with_the_name_of_a_wrapper_is_none(tmp_path: Path) -> None:
    """All of it is saved; where two tensors would get one name, that is an error."""
    save(tmp_path, Wrapped("scale"))
    assert sorted(Checkpointer(tmp_path).read(1).model) == ["scale", "weight"]
    with pytest.raises(UnsupportedStateError, match=r"'_orig_mod\.weight' of the model"):
        save(tmp_path, Wrapped("weight"))


class Masked(nn.Module):
    """A buffer of some dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("mask", torch.tensor([0, 1], dtype=dtype))


@pytest.mark.parametrize(
    ("saved", "live"),
    [
        (torch.float32, torch.uint8),
        (torch.float32, torch.bool),
        (torch.complex64, torch.float32),
    ],
)
def test_a_dtype_that_cannot_hold_what_was_saved_is_refused(
    tmp_path: Path, saved: torch.dtype, live: torch.dtype
) -> None:
    """Torch would drop fractions and imaginary parts; bytes into booleans lose nothing."""
    save(tmp_path, Masked(saved))
    model = Masked(live)
    with pytest.raises(StateMismatchError, match=f"mask was {saved} and is {live}"):
        Checkpointer(tmp_path).load(model)
    save(tmp_path, Masked(torch.uint8))
    assert Checkpointer(tmp_path).load(Masked(torch.bool)).get_buffer("mask").tolist() == [0, 1]
