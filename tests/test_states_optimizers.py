"""The state of optimizers comes back as it was, by the names of the parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from conftest import adamw, same_bytes, small_model
from ray_imuckpt import Checkpointer


def test_low_precision_parameters_keep_the_precision_of_their_optimizer_state(
    tmp_path: Path,
) -> None:
    """Torch's own load_state_dict would round float32 moments to the parameter's bfloat16."""
    model = nn.Linear(4, 4).to(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model(torch.randn(2, 4, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    for state in optimizer.state.values():
        state["exp_avg"] = torch.randn(state["exp_avg"].shape)
    expected = optimizer.state_dict()
    checkpointer = Checkpointer(tmp_path)
    checkpointer.checkpoint(1, model=model, optimizer=optimizer)
    fresh = nn.Linear(4, 4).to(torch.bfloat16)
    restored = torch.optim.AdamW(fresh.parameters(), lr=5.0)
    for _ in range(2):  # into memory of its own, and in place
        checkpointer.start(fresh, restored)
        assert same_bytes(restored.state_dict(), expected)


def test_an_optimizer_that_has_not_stepped_is_stored_as_it_is(tmp_path: Path) -> None:
    """Its state is empty, and comes back empty."""
    model = small_model()
    optimizer = adamw(model)
    Checkpointer(tmp_path).checkpoint(1, model=model, optimizer=optimizer)
    assert optimizer.state_dict()["state"] == {}, "saving must not step it"
    restored = adamw(small_model())
    Checkpointer(tmp_path).start(small_model(seed=2), None)
    fresh = small_model(seed=2)
    restored = adamw(fresh)
    Checkpointer(tmp_path).start(fresh, restored)
    assert restored.state_dict()["state"] == {}


def test_optimizer_state_follows_names_when_parameters_are_reordered(tmp_path: Path) -> None:
    """State belongs to a parameter's name, not to its number."""
    model = small_model()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])
    model(torch.randn(8, 4)).sum().backward()
    optimizer.step()
    checkpointer = Checkpointer(tmp_path)
    checkpointer.checkpoint(1, model=model, optimizer=optimizer)
    fresh = small_model(seed=3)
    backwards = torch.optim.Adam([p for p in reversed(list(fresh.parameters())) if p.requires_grad])
    checkpointer.start(fresh, backwards)
    for name, parameter in fresh.named_parameters():
        if parameter.requires_grad:
            live = dict(model.named_parameters())[name]
            assert same_bytes(dict(backwards.state[parameter]), dict(optimizer.state[live]))


def test_further_models_and_optimizers_by_keyword(tmp_path: Path) -> None:
    """A second model, its optimizer and a scaler come back as the first ones do."""
    model, critic = small_model(0), small_model(1)
    optimizer, critic_optimizer = adamw(model), adamw(critic)
    critic(torch.randn(8, 4)).sum().backward()
    critic_optimizer.step()
    expected = {n: t.clone() for n, t in critic.state_dict().items()}
    Checkpointer(tmp_path).checkpoint(
        1,
        model=model,
        optimizer=optimizer,
        critic=critic,
        critic_optimizer=critic_optimizer,
        scaler=torch.amp.GradScaler("cpu"),
    )
    fresh = small_model(5)
    fresh_optimizer = adamw(fresh)
    Checkpointer(tmp_path).start(
        small_model(4),
        critic=fresh,
        critic_optimizer=fresh_optimizer,
        scaler=torch.amp.GradScaler("cpu"),
    )
    assert same_bytes(dict(fresh.state_dict()), expected)
    assert same_bytes(fresh_optimizer.state_dict(), critic_optimizer.state_dict())


def test_optimizers_by_keyword_keep_their_precision(tmp_path: Path) -> None:
    """Moments of bfloat16 parameters stay float32."""

    def build() -> tuple[nn.Module, torch.optim.Optimizer]:
        critic = nn.Linear(2, 2).to(torch.bfloat16)
        optimizer = torch.optim.AdamW(critic.parameters())
        critic(torch.ones(1, 2, dtype=torch.bfloat16)).sum().backward()
        optimizer.step()
        return critic, optimizer

    critic, optimizer = build()
    for state in optimizer.state.values():
        state["exp_avg"] = torch.randn(state["exp_avg"].shape)
    expected = optimizer.state_dict()
    Checkpointer(tmp_path).checkpoint(1, model=small_model(), critic=critic, second=optimizer)
    _, fresh = build()
    Checkpointer(tmp_path).start(small_model(), second=fresh)
    assert same_bytes(fresh.state_dict(), expected)


def test_an_optimizer_may_have_a_word_of_its_own_in_its_state(tmp_path: Path) -> None:
    """Also the one by which ours says which parameters a rank of a gang has stepped."""

    class Counting(torch.optim.SGD):
        """An optimizer that knows how often it has stepped."""

        stepped = 0

        def state_dict(self) -> dict[str, Any]:
            return {**super().state_dict(), "stepped": self.stepped}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            state = dict(state_dict)
            self.stepped = state.pop("stepped")
            super().load_state_dict(state)

    critic = nn.Linear(2, 2)
    counting, fresh = (Counting(critic.parameters(), lr=0.1) for _ in range(2))
    counting.stepped = 4
    Checkpointer(tmp_path).checkpoint(1, model=small_model(), critic=critic, counting=counting)
    Checkpointer(tmp_path).start(small_model(), critic=critic, counting=fresh)
    assert fresh.stepped == 4
