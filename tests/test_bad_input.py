"""Bad input gets a clear error and loses nothing."""

from __future__ import annotations

import copy
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from conftest import adamw, same_bytes, small_model, train
from ray_imuckpt import (
    Checkpointer,
    CorruptCheckpointError,
    SaveFailedError,
    StateMismatchError,
    UnsupportedFormatError,
    UnsupportedStateError,
)
from ray_imuckpt.repository.records import seal


def everything(directory: Path) -> dict[str, bytes]:
    """All files below a directory with their bytes."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize(
    ("epoch", "error"),
    [(-1, ValueError), (True, TypeError), (1.0, TypeError), ("1", TypeError), (None, TypeError),
     (np.float64(2), TypeError)],
)  # fmt: skip
def test_an_epoch_that_is_none(trained: Any, epoch: Any, error: type[Exception]) -> None:
    directory = trained(1)
    before = everything(directory)
    with pytest.raises(error, match=re.escape(f"epoch={epoch!r}".removeprefix("epoch=-"))):
        Checkpointer(directory).checkpoint(epoch, model=small_model())
    assert everything(directory) == before


def test_numpy_integers_are_epochs(tmp_path: Path) -> None:
    Checkpointer(tmp_path).checkpoint(np.int64(3), model=small_model())
    assert Checkpointer(tmp_path).list_existing_checkpoint_indices() == [3]


@pytest.mark.parametrize("value", [0, -5, 1.5, True, "2"])
def test_a_save_every_that_is_none(value: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="save_every"):
        Checkpointer(save_every=value)


@pytest.mark.parametrize("value", ["lats", "", True, 1.0, -3, [1]])
def test_continue_from_is_checked_at_construction(value: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="continue_from"):
        Checkpointer(continue_from=value)
    with pytest.raises(ValueError, match="'last'.*'none'"):
        Checkpointer(continue_from="lats")


class Custom:
    """No state_dict."""


@pytest.mark.parametrize(
    ("keywords", "path"),
    [
        ({"hook": lambda: 1}, "other.hook"),
        ({"file": open(os.devnull)}, "other.file"),  # noqa: SIM115
        ({"config": {"deep": [1, Custom()]}}, "other.config['deep'][1]"),
        ({"log": [{"x": Custom()}]}, "log[0]['x']"),
        ({"metrics": {"loss": Custom()}}, "metrics['loss']"),
        ({"per_rank": {"sampler": Custom()}}, "per_rank['sampler']"),
        ({"sparse": torch.ones(2, 2).to_sparse()}, "other.sparse"),
        ({"meta": torch.ones(2, device="meta")}, "other.meta"),
    ],
)
def test_what_cannot_be_stored_is_refused_with_its_path_before_a_byte_is_written(
    tmp_path: Path, keywords: dict[str, Any], path: str
) -> None:
    with pytest.raises(UnsupportedStateError) as caught:
        Checkpointer(tmp_path / "run").checkpoint(1, model=small_model(), **keywords)
    assert path in str(caught.value)
    assert isinstance(caught.value, TypeError)
    assert not (tmp_path / "run").exists()


def test_a_lazy_or_meta_model_is_refused_with_the_name(tmp_path: Path) -> None:
    for model in (nn.Sequential(nn.LazyLinear(3)), nn.Sequential(nn.Linear(2, 2, device="meta"))):
        with pytest.raises(UnsupportedStateError, match="0.weight"):
            Checkpointer(tmp_path / "run").checkpoint(1, model=model)
    assert not (tmp_path / "run").exists()


def test_a_model_that_does_not_fit_all_keys_listed_and_nothing_changed(trained: Any) -> None:
    directory = trained(1)
    other = nn.Sequential(
        nn.Linear(5, 8), nn.Identity(), nn.Identity(), nn.Linear(8, 2, bias=False)
    )
    other.more = nn.Linear(1, 1)
    before = {n: t.clone() for n, t in other.state_dict().items()}
    with pytest.raises(StateMismatchError) as caught:
        Checkpointer(directory).start(other)
    error = caught.value
    assert error.missing == ["more.bias", "more.weight"]
    assert error.unexpected == [
        "1.bias",
        "1.num_batches_tracked",
        "1.running_mean",
        "1.running_var",
        "1.weight",
        "3.bias",
    ]
    assert error.wrong_shape == {"0.weight": ([8, 4], [8, 5])}
    for key in [*error.missing, *error.unexpected, "0.weight: saved [8, 4], here [8, 5]"]:
        assert key in str(error)
    assert same_bytes(dict(other.state_dict()), before)
    with pytest.raises(StateMismatchError):
        Checkpointer(directory).load(other)


def test_strict_false_loads_what_fits(trained: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 8))
    model.more = nn.Linear(1, 1)
    Checkpointer(trained(1)).load(model, strict=False)
    assert torch.equal(model[0].weight, Checkpointer(trained(1)).read(1).model["0.weight"])


@pytest.mark.parametrize("kind", ["class", "groups", "parameters"])
def test_an_optimizer_that_does_not_fit_leaves_everything_unchanged(
    trained: Any, kind: str
) -> None:
    directory = trained(1)
    model = small_model(seed=6)
    usable = [p for p in model.parameters() if p.requires_grad]
    optimizer: torch.optim.Optimizer = {
        "class": lambda: torch.optim.SGD(usable),
        "groups": lambda: torch.optim.AdamW(usable),
        "parameters": lambda: torch.optim.AdamW([{"params": usable[:1]}, {"params": usable[1:]}]),
    }[kind]()
    before = {n: t.clone() for n, t in model.state_dict().items()}, optimizer.state_dict()
    with pytest.raises(StateMismatchError, match={"class": "AdamW.*SGD"}.get(kind, "group")):
        Checkpointer(directory).start(model, optimizer)
    assert same_bytes(dict(model.state_dict()), before[0])
    assert same_bytes(optimizer.state_dict(), before[1])


def _optimizer(make: Any, *sizes: int) -> torch.optim.Optimizer:
    """One of as many groups as there are sizes, having stepped once."""
    groups = [{"params": [nn.Parameter(torch.ones(3)) for _ in range(size)]} for size in sizes]
    optimizer = make(groups, lr=0.1)
    for group in groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones(3)
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("how", ["other", "per_rank"])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: _optimizer(torch.optim.SGD, 1, 2), "'thing'.* is a SGD here.* as a Adam"),
        (lambda: _optimizer(torch.optim.Adam, 3), "'thing'.*2 parameter group.*1 of"),
        (lambda: _optimizer(torch.optim.Adam, 2, 1), r"'thing'.*\[1, 2\].*\[2, 1\]"),
    ],
)
def test_an_optimizer_by_keyword_that_does_not_fit_changes_nothing(
    tmp_path: Path, how: str, wrong: Any, message: str
) -> None:
    def given(thing: Any, step_size: int) -> dict[str, Any]:
        objects = {
            "a_scheduler": torch.optim.lr_scheduler.StepLR(thing, step_size),
            "thing": thing,
        }
        return {"per_rank": objects} if how == "per_rank" else objects

    right = _optimizer(torch.optim.Adam, 1, 2)
    held = [parameter for group in right.param_groups for parameter in group["params"]]
    Checkpointer(tmp_path, blocking=True).checkpoint(
        1, model=small_model(), held=nn.ParameterList(held), **given(right, 2)
    )
    model, thing = small_model(seed=1), wrong()
    objects = given(thing, 3)
    scheduler = objects.get("a_scheduler") or objects["per_rank"]["a_scheduler"]
    before = copy.deepcopy([dict(model.state_dict()), thing.state_dict(), scheduler.state_dict()])
    with pytest.raises(StateMismatchError, match=message):
        Checkpointer(tmp_path).start(model, **objects)
    after = [dict(model.state_dict()), thing.state_dict(), scheduler.state_dict()]
    assert same_bytes(after, before)


def test_a_scheduler_of_another_class_is_refused_and_a_renamed_one_let_pass(tmp_path: Path) -> None:
    schedulers = torch.optim.lr_scheduler

    class Renamed(schedulers.StepLR):
        """The same under another name."""

    def make(kind: Any, *arguments: int) -> Any:
        return kind(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1), *arguments)

    Checkpointer(tmp_path, blocking=True).checkpoint(
        1, model=small_model(), scheduler=make(schedulers.StepLR, 5)
    )
    for kind in (schedulers.CosineAnnealingLR, Renamed):
        scheduler = make(kind, 9)
        before = scheduler.state_dict()
        with pytest.raises(StateMismatchError, match="'scheduler' is a .*StepLR") as caught:
            Checkpointer(tmp_path).start(small_model(), scheduler=scheduler)
        assert kind.__name__ in str(caught.value)
        assert "strict=False" in str(caught.value)
        assert scheduler.state_dict() == before
    Checkpointer(tmp_path).start(small_model(), scheduler=scheduler, strict=False)
    assert scheduler.step_size == 5


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.Adagrad, torch.optim.Rprop])
def test_a_parameter_outside_of_the_model_that_grew_is_told_of(tmp_path: Path, make: Any) -> None:
    def build(seed: int, size: int) -> Any:
        model, own = small_model(seed), nn.Parameter(torch.ones(size))
        return model, make([*(p for p in model.parameters() if p.requires_grad), own]), own

    model, optimizer, own = build(0, 4)
    own.grad = torch.ones(4)
    optimizer.step()
    Checkpointer(tmp_path, blocking=True).checkpoint(
        1, model=model, optimizer=optimizer, again=optimizer, own=own
    )
    for keyword in ("optimizer", "again"):
        model, optimizer, own = build(1, 7)
        before = copy.deepcopy([dict(model.state_dict()), optimizer.state_dict()])
        with pytest.raises(StateMismatchError, match=r"param_groups\[0\]\[5\].*\[4\], here \[7\]"):
            Checkpointer(tmp_path).start(model, **{keyword: optimizer})
        assert same_bytes([dict(model.state_dict()), optimizer.state_dict()], before)


def test_a_model_without_memory_is_not_loaded_into(trained: Any) -> None:
    with torch.device("meta"):
        empty = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 2))
    with pytest.raises(StateMismatchError, match="to_empty"):
        Checkpointer(trained(1)).load(empty)


def test_a_model_by_keyword_that_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    Checkpointer(tmp_path).checkpoint(1, model=small_model(), critic=nn.Linear(2, 2))
    model = small_model(seed=9)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(StateMismatchError, match="weight"):
        Checkpointer(tmp_path).start(model, critic=nn.Linear(3, 3))
    assert same_bytes(dict(model.state_dict()), before)


def test_an_object_that_refuses_its_state_leaves_everything_unchanged(tmp_path: Path) -> None:
    class Refusing:
        def state_dict(self) -> dict[str, int]:
            return {"at": 1}

        def load_state_dict(self, state: dict[str, int]) -> None:
            raise KeyError("not mine")

    def build(seed: int) -> Any:
        model = small_model(seed)
        optimizer = adamw(model)
        return model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1 + seed)

    model, optimizer, scheduler = build(0)
    Checkpointer(tmp_path).checkpoint(
        1, model=model, optimizer=optimizer, per_rank={"sampler": Refusing()},
        detector=Refusing(), a_scheduler=scheduler,
    )  # fmt: skip
    for given in ({"per_rank": {"sampler": Refusing()}}, {"detector": Refusing()}):
        model, optimizer, scheduler = build(9)
        states = [dict(model.state_dict()), optimizer.state_dict(), scheduler.state_dict()]
        before = copy.deepcopy(states)
        with pytest.raises(StateMismatchError, match="did not take the state.*not mine"):
            Checkpointer(tmp_path).start(model, optimizer, a_scheduler=scheduler, **given)
        states = [dict(model.state_dict()), optimizer.state_dict(), scheduler.state_dict()]
        assert same_bytes(states, before)


def test_a_size_that_no_file_has_is_corrupt_and_passed_over(trained: Any) -> None:
    directory = trained(2)
    file = directory / "checkpoint=2" / "manifest.json"
    manifest = json.loads(file.read_bytes())
    huge = dict(manifest["files"][0], size=10**15, chunk_size=10**15)
    huge["checksums"] = huge["checksums"][:1]
    file.write_bytes(sealed(manifest, files=[huge, *manifest["files"][1:]]))
    assert Checkpointer(directory).start(small_model()).start_epoch == 2


def test_a_pointer_that_is_cut(tmp_path: Path) -> None:
    (tmp_path / "imuckpt-pointer.json").write_text("{")
    with pytest.raises(CorruptCheckpointError, match="pointer"):
        Checkpointer().load(small_model(), tmp_path)


def test_objects_that_were_not_saved(trained: Any) -> None:
    directory = trained(1)
    scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(StateMismatchError, match="scaler"):
        Checkpointer(directory).start(small_model(), scaler=scaler)
    started = Checkpointer(directory).start(small_model(), scaler=scaler, strict=False)
    assert started.other["scaler"] is scaler


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(SaveFailedError) as caught:
        Checkpointer(tmp_path / "file" / "run", blocking=True).checkpoint(3, model=small_model())
    assert f"{tmp_path}/file/run/checkpoint=3" in str(caught.value)
    assert caught.value.epoch == 3
    with pytest.raises(SaveFailedError, match="/proc/nowhere"):
        Checkpointer("/proc/nowhere", blocking=True).checkpoint(1, model=small_model())


def test_arguments_of_the_wrong_type(tmp_path: Path) -> None:
    checkpointer = Checkpointer(tmp_path)
    with pytest.raises(TypeError, match="model is a NoneType"):
        checkpointer.start(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="optimizer is a list"):
        checkpointer.start(small_model(), [1])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="metrics"):
        checkpointer.checkpoint(1, model=small_model(), metrics=[1])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"metrics\['loss'\].*\(2,\)"):
        checkpointer.checkpoint(1, model=small_model(), metrics={"loss": torch.ones(2)})
    with pytest.raises(TypeError, match="epoch, a path"):
        checkpointer.read(object())


# ---------------------------------------------------------------------- damaged manifests


def sealed(manifest: dict[str, Any], **changes: Any) -> bytes:
    """A manifest with fields changed and a checksum that matches."""
    body = {k: v for k, v in {**manifest, **changes}.items() if k != "checksum"}
    return seal({k: v for k, v in body.items() if v is not ...})


def _outside(manifest: dict[str, Any], name: str) -> bytes:
    files = [dict(manifest["files"][0], name=name), *manifest["files"][1:]]
    return sealed(manifest, files=files)


DAMAGE = {
    "empty": lambda m, raw: b"",
    "cut": lambda m, raw: raw[: len(raw) // 2],
    "not JSON": lambda m, raw: b"\x00\xff hello",
    "another JSON": lambda m, raw: b"[1, 2]",
    "no format": lambda m, raw: sealed(m, format=...),
    "one digit altered": lambda m, raw: raw.replace(b'"epoch": 3', b'"epoch": 4', 1),
    "checksum gone": lambda m, raw: json.dumps(
        {k: v for k, v in m.items() if k != "checksum"}
    ).encode(),
    "a field gone": lambda m, raw: sealed(m, run_id=...),
    "a field of another type": lambda m, raw: sealed(m, epoch="3"),
    "of another epoch": lambda m, raw: sealed(m, epoch=2),
    "a file above": lambda m, raw: _outside(
        m, "../checkpoint=2/model-0123456789abcdef.safetensors"
    ),
    "an absolute file": lambda m, raw: _outside(m, "/etc/passwd"),
    "a file named twice": lambda m, raw: sealed(m, files=[m["files"][0]] * 2),
    "a negative size": lambda m, raw: sealed(m, files=[dict(m["files"][0], size=-1)]),
    "too few checksums": lambda m, raw: sealed(m, files=[dict(m["files"][0], checksums=[])]),
    "a header larger than its file": lambda m, raw: sealed(
        m, files=[dict(m["files"][0], header_size=10**15)]
    ),
    "a header of another type": lambda m, raw: sealed(
        m, files=[dict(m["files"][0], header_size="8")]
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_manifest(trained: Any, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    """By number it is an error that names it; "last" falls back to the newest sound one."""
    directory = trained(3)
    file = directory / "checkpoint=3" / "manifest.json"
    raw = file.read_bytes()
    file.write_bytes(DAMAGE[damage](json.loads(raw), raw))
    checkpointer = Checkpointer(directory)
    with pytest.raises(CorruptCheckpointError, match="checkpoint=3"):
        checkpointer.start(small_model(), continue_from=3)
    with pytest.raises(CorruptCheckpointError, match="checkpoint=3"):
        checkpointer.load(small_model(), 3)
    assert checkpointer.start(small_model()).start_epoch == 3
    assert "checkpoint=3" in caplog.text


def test_a_manifest_of_a_newer_format_is_never_passed_over(trained: Any) -> None:
    directory = trained(3)
    file = directory / "checkpoint=3" / "manifest.json"
    file.write_bytes(sealed(json.loads(file.read_bytes()), format=2))
    for choice in ("last", 3):
        with pytest.raises(UnsupportedFormatError, match="format 2"):
            Checkpointer(directory).start(small_model(), continue_from=choice)


@pytest.mark.parametrize("part", ["model", "model_frozen", "optimizer", "state.json", "state"])
@pytest.mark.parametrize("damage", ["altered", "cut", "longer", "gone"])
def test_damaged_data_files(
    trained: Any, part: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Promise 3: by number an error, for "last" the newest sound one; no object is changed."""
    directory = trained(3)
    stem, _, suffix = part.partition(".")
    file = next((directory / "checkpoint=3").glob(f"{stem}-*.{suffix or 'safetensors'}"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.unlink()  # a frozen file is a link: the other checkpoints must keep theirs
    if damage != "gone":
        new = {"altered": data, "cut": data[:-1], "longer": data + b"x"}[damage]
        file.write_bytes(bytes(new))
    checkpointer = Checkpointer(directory)
    model = small_model(seed=4)
    optimizer = adamw(model)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=9)
    before = copy.deepcopy(
        [dict(model.state_dict()), optimizer.state_dict(), scheduler.state_dict()]
    )
    with pytest.raises(CorruptCheckpointError, match=file.name):
        checkpointer.start(model, optimizer, scheduler=scheduler, continue_from=3)
    after = [dict(model.state_dict()), optimizer.state_dict(), scheduler.state_dict()]
    assert same_bytes(after, before)
    with pytest.raises(CorruptCheckpointError, match=file.name):
        checkpointer.verify(3)
    assert checkpointer.start(model, adamw(model)).start_epoch == 3
    assert file.name in caplog.text


def test_when_every_checkpoint_is_damaged_training_does_not_silently_begin_anew(
    trained: Any,
) -> None:
    directory = trained(2)
    for file in directory.glob("checkpoint=*/model-*"):
        file.write_bytes(b"")
    with pytest.raises(CorruptCheckpointError, match="Every checkpoint"):
        Checkpointer(directory).start(small_model())


def test_testing_reads_the_models_bytes_only(trained: Any) -> None:
    directory = trained(2)
    for file in directory.glob("checkpoint=2/*"):
        if not file.name.startswith(("model", "manifest")):
            file.unlink()
    Checkpointer(directory).load(small_model(), 2)


def test_an_epoch_can_be_saved_over_a_damaged_one(trained: Any) -> None:
    directory = trained(3)
    (directory / "checkpoint=3" / "manifest.json").write_bytes(b"")
    _, _, log, first = train(directory, 4)
    assert first == 3
    assert [entry["epoch"] for entry in log] == [1, 2, 3, 4]
    assert Checkpointer(directory).list_existing_checkpoint_indices() == [1, 2, 3, 4]
    for epoch in (3, 4):
        Checkpointer(directory).verify(epoch)
