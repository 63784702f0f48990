"""The parsers of what lies on disk, with real texts that were altered; `make soak` goes on."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.fuzz.mutations import mutated
from support.fuzz.targets import TARGETS, accepts, seeds


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[bytes]]:
    """Real texts for each parser."""
    return seeds(tmp_path_factory.mktemp("seeds"))


@pytest.mark.parametrize("target", TARGETS)
def test_a_real_text_is_accepted(real: dict[str, list[bytes]], target: str) -> None:
    """Else altering it would show nothing."""
    assert all(accepts(target, data) for data in real[target])


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=300, derandomize=True, deadline=None, database=None)
@given(seed=st.integers(0, 2**32))
def test_an_altered_text_is_accepted_or_an_error_of_ours(
    real: dict[str, list[bytes]], target: str, seed: int
) -> None:
    """Whatever was altered, and however it is sealed."""
    random = Random(seed)
    data = random.choice(real[target])
    for _ in range(random.randrange(1, 4)):
        data = mutated(data, random)
        accepts(target, data)
