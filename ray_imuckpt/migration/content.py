"""Another program's checkpoint, told apart: model, optimizer, epoch, and everything else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ray_imuckpt.errors import StateMismatchError, UnsupportedStateError
from ray_imuckpt.migration import optimizers
from ray_imuckpt.migration.optimizers import NotNamedError, is_optimizer
from ray_imuckpt.migration.remainder import Content, sort
from ray_imuckpt.migration.sources import LIGHTNING, Source
from ray_imuckpt.migration.trees import Leaf, at, check_nesting, is_state, is_tensor, plain
from ray_imuckpt.state.model import is_extra, metadata_of

MODEL_KEYS = (
    "model", "model_state_dict", "state_dict", "model_state", "module", "net", "network",
    "app.model",
)  # fmt: skip
OPTIMIZER_KEYS = (
    "optimizer", "optimizer_state_dict", "optim", "optimizer_state", "optimizer_states", "opt",
    "app.optimizer", "app.optim",
)  # fmt: skip
_DDP = "module."
_WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module")
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Choices:
    """The choices of the user's.

    Attributes:
        model_key: Where the model's state is, ``a.b`` for one in another; ``None``: looked for.
        optimizer_key: Where the optimizer's is.
        parameters: The names of the optimizer's parameters in its order.
        strip: What the names of the model's tensors begin with and shall not.
    """

    model_key: str | None = None
    optimizer_key: str | None = None
    parameters: Sequence[str] | None = None
    strip: str = ""


def sorted_out(source: Source, choices: Choices) -> Content:
    """Return what a checkpoint holds, in our terms.

    Raises:
        UnsupportedStateError: No model was found in it, or it cannot be gone through.
        StateMismatchError: A key that the user named is not there.
    """
    tree = source.tree
    check_nesting(tree)
    model_key, state = _model_state(source, choices.model_key)
    content = _model(state, choices.strip)
    optimizer_key, saved = _optimizer_state(tree, choices.optimizer_key)
    rest = {} if model_key == "" else dict(tree)
    for key in (model_key, optimizer_key):
        _take(rest, key)
    if saved is not None:
        _bring_optimizer(content, optimizer_key, saved, state, choices)
    sort(content, rest, lightning=source.kind == LIGHTNING)
    content.left["random generators"] = "they were not saved in a way that is known"
    return content


def _model_state(source: Source, key: str | None) -> tuple[str, Mapping[str, Any]]:
    """Return where the model's state is, and that."""
    tree = source.tree
    if key is not None:
        state = at(tree, key)
        if not is_state(state):
            raise StateMismatchError(
                f"There are no tensors at {key!r}.",
                url=source.path,
                hint=f"Name another key. There are: {_keys(tree)}.",
            )
        return key, state
    if is_state(tree) and all(is_tensor(v) or is_extra(_bare(k, "")) for k, v in tree.items()):
        return "", tree
    for name in MODEL_KEYS:
        state = at(tree, name)
        if is_state(state):
            return name, state
    raise UnsupportedStateError(
        "No model was found in it.",
        url=source.path,
        hint=f"Name the key of its state (--model-key, model_key=). There are: {_keys(tree)}.",
    )


def _keys(tree: Mapping[Any, Any]) -> str:
    shown = [str(key) for key in tree]
    for key, value in tree.items():
        if isinstance(value, Mapping):
            shown += [f"{key}.{inner}" for inner, v in value.items() if isinstance(v, Mapping)]
    return ", ".join(shown[:30]) or "none"


def _take(tree: dict[Any, Any], key: str) -> None:
    """Take what lies at ``a.b`` out of a tree, whose mappings are copied on the way."""
    if key in tree:
        del tree[key]
        return
    first, dot, rest = key.partition(".")
    if dot and isinstance(tree.get(first), Mapping):
        tree[first] = dict(tree[first])
        _take(tree[first], rest)
        if not tree[first]:
            del tree[first]


def _model(state: Mapping[str, Any], strip: str) -> Content:
    prefix = _prefix(state)
    names = {key: _bare(key, prefix) for key in state}
    content = Content({})
    beside = 0
    for key, value in state.items():
        name = names[key]
        if not name.startswith(strip):
            beside += 1
            continue
        name = name.removeprefix(strip)
        if is_extra(name):
            content.extra[name] = plain(value)
        elif is_tensor(value):
            content.model[name] = value
        else:
            content.left[f"model[{name!r}]"] = f"it is a {type(value).__name__}, no tensor"
    if beside:
        content.left[f"{beside} tensors of the model"] = f"their names do not begin with {strip!r}"
    if not content.model:
        raise StateMismatchError(
            f"No tensor of the model has a name that begins with {strip!r}.",
            hint=f"The first is {next(iter(names.values()))!r}.",
        )
    for path, version in _versions(state).items():
        module = _bare(f"{path}.x", prefix).removesuffix("x")
        if module.startswith(strip):
            content.versions[module.removeprefix(strip).removesuffix(".")] = version
    return content


def _versions(state: Mapping[str, Any]) -> dict[str, int]:
    """Return the path of each module to its version, where torch has noted one that is not 1."""
    notes: Any = metadata_of(state)  # of a file that may hold anything
    if not isinstance(notes, Mapping):
        return {}
    versions = {k: n.get("version") for k, n in notes.items() if isinstance(n, Mapping)}
    return {str(k): v for k, v in versions.items() if type(v) is int and v != 1}


def _prefix(state: Mapping[str, Any]) -> str:
    """Return what DDP has put before all names."""
    return _DDP if all(name.startswith(_DDP) for name in state) else ""


def _bare(key: str, prefix: str) -> str:
    """Return a name as in the bare module: without DDP's prefix, and wrappers' segments."""
    key = key.removeprefix(prefix)
    if any(wrapper in key for wrapper in _WRAPPERS):
        return ".".join(part for part in key.split(".") if part not in _WRAPPERS)
    return key


def _optimizer_state(tree: Mapping[Any, Any], key: str | None) -> tuple[str, Any]:
    """Return where the optimizer's state is, and that; ``None`` where there is none."""
    for name in OPTIMIZER_KEYS if key is None else (key,):
        state = at(tree, name)
        if isinstance(state, list) and len(state) == 1:
            state = state[0]
        if is_optimizer(state):
            return name, state
    if key is not None:
        raise StateMismatchError(
            f"There is no state of an optimizer at {key!r}.",
            hint=f"Name another key. There are: {_keys(tree)}.",
        )
    return "", None


def _bring_optimizer(
    content: Content, key: str, saved: Any, state: Mapping[str, Any], choices: Choices
) -> None:
    whole = _model(state, "")  # of which the optimizer may have more than what is brought along
    try:
        named = optimizers.named(saved, _parameters(whole.model), choices.parameters)
    except (NotNamedError, KeyError, TypeError, ValueError, AttributeError) as error:
        content.left[key] = f"{error}; name its parameters in its order (--parameters, parameters=)"
        return
    strip = choices.strip
    groups = [
        {**group, "params": [n.removeprefix(strip) for n in group["params"] if n.startswith(strip)]}
        for group in named["param_groups"]
    ]
    states = {
        n.removeprefix(strip): plain(values)
        for n, values in named["state"].items()
        if n.startswith(strip)
    }
    content.optimizer = plain({**named, "param_groups": groups, "state": states})


def _parameters(model: Mapping[str, Leaf]) -> dict[str, Leaf]:
    """Return the tensors that may be parameters: tied ones once, and no known buffers."""
    parameters: dict[str, Leaf] = {}
    seen: set[Any] = set()
    for name, tensor in model.items():
        trained = tensor.dtype.is_floating_point or tensor.dtype.is_complex
        if not trained or name.rpartition(".")[2] in _BUFFERS:
            continue
        if isinstance(tensor, torch.Tensor) and tensor.numel():
            place = tensor.data_ptr(), tensor.shape, tensor.stride()
            if place in seen:
                continue
            seen.add(place)
        parameters[name] = tensor
    return parameters
