"""Generators of random numbers that are passed by keyword are restored in place."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import mtrand

from conftest import same_bytes, small_model
from ray_imuckpt import Checkpointer, StateMismatchError, UnsupportedStateError
from ray_imuckpt.state import random_state

KINDS: dict[str, tuple[Callable[[int], Any], Callable[[Any], list[float]]]] = {
    "python": (random.Random, lambda g: [g.random(), g.gauss(0, 1)]),
    "PCG64": (np.random.default_rng, lambda g: g.standard_normal(3).tolist()),
    "children": (
        lambda seed: np.random.default_rng([seed, 7]),
        lambda g: [child.random() for child in g.spawn(2)],
    ),
    "MT19937": (
        lambda seed: np.random.Generator(np.random.MT19937(seed)),
        lambda g: g.integers(0, 9, 5, dtype=np.int32).tolist(),
    ),
    "Philox": (
        lambda seed: np.random.Generator(np.random.Philox(seed)),
        lambda g: g.random(3).tolist(),
    ),
    "SFC64": (
        lambda seed: np.random.Generator(np.random.SFC64(seed)),
        lambda g: g.random(3).tolist(),
    ),
    "RandomState": (np.random.RandomState, lambda g: g.randn(3).tolist()),
    "RandomState of PCG64": (
        lambda seed: np.random.RandomState(np.random.PCG64(seed)),
        lambda g: g.randn(3).tolist(),
    ),
    "torch": (
        lambda seed: torch.Generator().manual_seed(seed),
        lambda g: torch.rand(3, generator=g).tolist(),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["other", "per_rank"])
def test_a_generator_goes_on_where_it_was(tmp_path: Path, kind: str, how: str) -> None:
    """By keyword and per rank, it draws the numbers that it would have drawn."""
    make, draw = KINDS[kind]

    def keywords(generator: Any) -> dict[str, Any]:
        return {"per_rank": {"g": generator}} if how == "per_rank" else {"g": generator}

    generator = make(1)
    draw(generator)
    checkpointer = Checkpointer(tmp_path, blocking=True)
    checkpointer.checkpoint(1, model=small_model(), **keywords(generator))
    expected = [draw(generator) for _ in range(3)]
    other = make(2)
    started = Checkpointer(tmp_path).start(small_model(), **keywords(other))
    assert [draw(other) for _ in range(3)] == expected
    if how == "other":
        assert started.other["g"] is other


def test_a_generator_without_a_state_is_refused(tmp_path: Path) -> None:
    """The system's cannot go on where it was; the error names it."""
    with pytest.raises(UnsupportedStateError, match=r"other\.rng is a random\.SystemRandom"):
        Checkpointer(tmp_path).checkpoint(1, model=small_model(), rng=random.SystemRandom())


def test_a_generator_of_another_algorithm_changes_nothing(tmp_path: Path) -> None:
    """It is refused by name, and stays as it was."""
    Checkpointer(tmp_path, blocking=True).checkpoint(
        1, model=small_model(), g=np.random.default_rng(1)
    )
    other = np.random.Generator(np.random.Philox(3))
    before = other.bit_generator.state["state"]["counter"].tolist()
    for wrong in (other, torch.Generator(), random.Random(1)):
        with pytest.raises(StateMismatchError, match=r"'g' is a generator .*PCG64"):
            Checkpointer(tmp_path).start(small_model(), g=wrong)
    assert other.bit_generator.state["state"]["counter"].tolist() == before


def test_cuda_states_without_their_devices_are_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is an error that names the way out, before anything has changed."""
    real = random_state.take_random

    def with_cuda() -> dict[str, Any]:
        return {**real(), "cuda": [torch.zeros(16, dtype=torch.uint8)] * 2}

    monkeypatch.setattr("ray_imuckpt.saving.collect.take_random", with_cuda)
    Checkpointer(tmp_path, blocking=True).checkpoint(1, model=small_model())
    if not torch.cuda.is_available():
        model = small_model(seed=1)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with pytest.raises(StateMismatchError, match="2 CUDA device.*rank=0") as caught:
            Checkpointer(tmp_path).start(model)
        assert "strict=False" in str(caught.value)
        assert same_bytes(dict(model.state_dict()), before)
    Checkpointer(tmp_path).start(small_model(), strict=False)
    present = torch.cuda.device_count()
    assert f"random state of {2 - present} CUDA device(s) that rank 0 does not have" in caplog.text


@pytest.fixture
def numpy_of_another_kind() -> Iterator[None]:
    """Puts NumPy's own bit generator back."""
    mine = mtrand.get_bit_generator()
    yield
    mtrand.set_bit_generator(mine)


@pytest.mark.usefixtures("numpy_of_another_kind")
def test_numpys_own_generator_may_be_another(tmp_path: Path) -> None:
    """Its state is kept whatever its algorithm; another algorithm here is an error."""
    mtrand.set_bit_generator(np.random.PCG64(3))
    Checkpointer(tmp_path, blocking=True).checkpoint(1, model=small_model())
    expected = np.random.random(3).tolist()
    mtrand.set_bit_generator(np.random.PCG64(4))
    Checkpointer(tmp_path).start(small_model())
    assert np.random.random(3).tolist() == expected
    mtrand.set_bit_generator(np.random.MT19937(4))
    with pytest.raises(StateMismatchError, match=r"(?s)MT19937 here.*PCG64.*set_bit_generator"):
        Checkpointer(tmp_path).start(small_model())


@pytest.mark.parametrize("kind", KINDS)
def test_the_generators_of_new_ranks_draw_by_checkpoint_rank_and_name_alone(kind: str) -> None:
    """What they were built with does not matter, and no two draw the same."""
    make, draw = KINDS[kind]
    saved = random_state.take_random()

    def drawn(rank: int, name: str, built_with: int = 1) -> list[Any]:
        generator = make(built_with)
        random_state.seed_generator(generator, saved, rank, name)
        return draw(generator)

    assert drawn(1, "g") == drawn(1, "g", built_with=2)
    assert len({str(drawn(*where)) for where in [(1, "g"), (2, "g"), (1, "h")]}) == 3
