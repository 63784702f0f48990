"""What an optimizer keeps of a parameter, however deep in what container, comes back as it was."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from conftest import small_model
from ray_imuckpt import Checkpointer, UnsupportedStateError
from support.trees import same


class Nested(torch.optim.Optimizer):
    """Like SOAP or an LBFGS by hand: it keeps lists, and a history of bounded length."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1})

    def step(self, closure: None = None) -> None:  # type: ignore[override] # torch has overloads
        del closure
        for parameter in (p for group in self.param_groups for p in group["params"]):
            wide = torch.randn(parameter.shape)
            self.state[parameter] |= {
                "preconditioners": [wide, None, (wide.double(), torch.arange(3))],
                "history": deque([wide], maxlen=2),
                "by_name": OrderedDict(a=wide, b={"step": 7}),
                "kind": "diagonal",
            }


class Overriding(Nested):
    """Has torch's own loading do its work, as most that override it."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)


class WithArray(Nested):
    """Its state has an array, which torch's own loading cannot take."""

    def step(self, closure: None = None) -> None:  # type: ignore[override] # torch has overloads
        super().step(closure)
        for values in self.state.values():
            values["array"] = np.arange(3)


def stepped(kind: type[Nested]) -> tuple[nn.Module, Nested]:
    """Return a model of bfloat16 and its optimizer, which has stepped."""
    model = nn.Linear(2, 2).to(torch.bfloat16)
    optimizer = kind(model.parameters())
    optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("kind", [Nested, Overriding, WithArray])
def test_nested_state_comes_back_as_it_was(tmp_path: Path, kind: type[Nested]) -> None:
    """Torch's own load_state_dict rounds, unbinds a deque, and makes another text of a text."""
    model, optimizer = stepped(kind)
    expected = optimizer.state_dict()
    checkpointer = Checkpointer(tmp_path)
    checkpointer.checkpoint(1, model=model, optimizer=optimizer, second=optimizer)
    fresh = nn.Linear(2, 2).to(torch.bfloat16)
    restored, second = kind(fresh.parameters()), kind(fresh.parameters())
    for _ in range(2):  # without a state before, and with one
        checkpointer.start(fresh, restored, second=second)
        for back in (restored, second):
            assert same(back.state_dict(), expected)


def test_what_an_optimizer_loads_otherwise_on_purpose_stays_so(tmp_path: Path) -> None:
    """A list that it refers to itself is the one in its state."""

    class Referring(Nested):
        """Keeps a list of its state at hand."""

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            super().load_state_dict(state_dict)
            self.at_hand = [values["preconditioners"] for values in self.state.values()]
            for values in self.state.values():
                values["kind"] = "loaded"

    model, optimizer = stepped(Referring)
    Checkpointer(tmp_path).checkpoint(1, model=model, optimizer=optimizer)
    restored = Referring(model.parameters())
    Checkpointer(tmp_path).start(model, restored)
    values = restored.state[next(model.parameters())]
    assert restored.at_hand[0] is values["preconditioners"]
    assert values["preconditioners"][0].dtype is torch.float32
    assert values["kind"] == "loaded"


@pytest.mark.parametrize("key", [("a", 1), 1.5, 1, "0.weight"], ids=repr)
def test_state_under_a_key_that_would_not_come_back_is_refused(tmp_path: Path, key: Any) -> None:
    """Of a type that no reader takes, or named as a parameter is; before anything is written."""
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(8, 4)).sum().backward()
    optimizer.step()
    optimizer.state[key] = {"n": 1}
    with pytest.raises(UnsupportedStateError, match="keeps state under"):
        Checkpointer(tmp_path).checkpoint(1, model=model, optimizer=optimizer)
    del optimizer.state[key]
    group: dict[Any, Any] = optimizer.param_groups[0]
    group[7] = 0.5
    with pytest.raises(UnsupportedStateError, match="keeps an option under 7"):
        Checkpointer(tmp_path).checkpoint(1, model=model, optimizer=optimizer)
    assert not list(tmp_path.glob("checkpoint=*"))


class Named(torch.optim.SGD):
    """Has words of its own in its state, as keywords are."""

    words: Mapping[Any, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), **self.words}


@pytest.mark.parametrize("word", ["class", 3])
def test_a_word_of_its_own_that_would_not_come_back_is_refused(tmp_path: Path, word: Any) -> None:
    """What a checkpoint calls something else, or what is no text."""
    model = small_model()
    optimizer = Named(model.parameters(), lr=0.1)
    optimizer.words = {word: 1}
    with pytest.raises(UnsupportedStateError, match=f"keeps a value under {word!r}"):
        Checkpointer(tmp_path).checkpoint(1, model=model, optimizer=optimizer)


@pytest.mark.parametrize("word", ["$", "\ud83d\ude00"], ids=ascii)
def test_a_keyword_that_would_not_come_back_is_refused(tmp_path: Path, word: str) -> None:
    """It would be damage to every reader, or another word; `start` says so already."""
    values: dict[str, Any] = {word: {"a": 1}}
    checkpointer = Checkpointer(tmp_path)
    with pytest.raises(UnsupportedStateError, match="other has the key"):
        checkpointer.start(small_model(), **values)
    with pytest.raises(UnsupportedStateError, match="other has the key"):
        checkpointer.checkpoint(1, model=small_model(), **values)
