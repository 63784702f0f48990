"""The errors of a run that cannot go on from a checkpoint, in the words of a framework."""

from __future__ import annotations

from ray_imuckpt.errors import StateMismatchError


def made_otherwise(
    error: StateMismatchError, adapter: str, framework: str, call: str
) -> StateMismatchError:
    """Return the error for a checkpoint that holds no state of the framework's trainer.

    Args:
        error: What says that it is missing; where, is taken over.
        adapter: Our class that would have made it.
        framework: The framework.
        call: What cannot go on, ``"fit()"`` for example.
    """
    text = (
        f"This checkpoint was not made by {adapter}: it holds no state of a {framework} Trainer, "
        f"so that no {call} can go on from it. Nothing was changed."
    )
    hint = f"Is it the right directory? {weights_alone(call)}"
    return StateMismatchError(text, **{**error.facts(), "hint": hint})


def weights_alone(call: str) -> str:
    """Return how to begin another run with the weights that were saved."""
    return (
        "To begin with the weights alone: ray_imuckpt.load(model, path) before "
        f"{call}, and another directory for the new run."
    )
