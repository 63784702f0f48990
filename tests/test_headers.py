"""Headers that are checked by themselves, and the short ways of a restore in place."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from torch import nn

from conftest import adamw, same_bytes, small_model
from ray_imuckpt import Checkpointer, CorruptCheckpointError
from ray_imuckpt.encoding.chunks import Chunks
from ray_imuckpt.encoding.tensors import byte_view, first_of_tied, parse_header, row
from ray_imuckpt.repository.records import seal


def test_the_manifest_holds_the_checksum_of_each_header(tmp_path: Path) -> None:
    """The header is hashed as a whole, its length included."""
    model = small_model()
    Checkpointer(tmp_path, blocking=True).checkpoint(1, model=model, optimizer=adamw(model))
    files = json.loads((tmp_path / "checkpoint=1" / "manifest.json").read_bytes())["files"]
    for entry in files:
        head = (tmp_path / "checkpoint=1" / entry["name"]).read_bytes()[: entry["header_size"]]
        if entry["name"].endswith(".json"):
            assert (head, entry["header_checksum"]) == (b"", "")
        else:
            assert len(head) == 8 + int.from_bytes(head[:8], "little")
            assert entry["header_checksum"] == xxhash.xxh3_128(head).hexdigest()


@pytest.mark.parametrize("part", ["model", "optimizer"])
def test_an_altered_header_is_found_before_anything_is_changed(tmp_path: Path, part: str) -> None:
    """As good a header as the true one, but for the name of a tensor."""
    saved = small_model()
    optimizer = adamw(saved)
    saved(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    Checkpointer(tmp_path, blocking=True).checkpoint(1, model=saved, optimizer=optimizer)
    directory = tmp_path / "checkpoint=1"
    (path,) = directory.glob(f"{part}-*.safetensors")
    path.write_bytes(path.read_bytes().replace(b"weight", b"wEight", 1))
    model = small_model(seed=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CorruptCheckpointError, match=rf"{path.name}.*|bytes 0 to \d+ were altered"):
        Checkpointer(tmp_path).start(model, adamw(model), continue_from=1)
    assert same_bytes(dict(model.state_dict()), before)


def test_a_header_of_more_than_one_chunk_is_restored(tmp_path: Path) -> None:
    """Whatever size of chunks a writer has chosen."""
    saved = nn.ParameterList(nn.Parameter(torch.randn(n % 3)) for n in range(300))
    Checkpointer(tmp_path, blocking=True).checkpoint(1, model=saved)
    path = tmp_path / "checkpoint=1" / "manifest.json"
    manifest = json.loads(path.read_bytes())
    del manifest["checksum"]
    for entry in manifest["files"]:
        data = (path.parent / entry["name"]).read_bytes()
        entry["chunk_size"] = 1000
        runs = [data[at : at + 1000] for at in range(0, len(data), 1000)]
        entry["checksums"] = [xxhash.xxh3_128(run).hexdigest() for run in runs]
    path.write_bytes(seal(manifest))
    model = nn.ParameterList(nn.Parameter(torch.zeros(n % 3)) for n in range(300))
    Checkpointer(tmp_path).start(model)
    assert same_bytes(dict(model.state_dict()), dict(saved.state_dict()))


def header(text: str) -> bytes:
    return len(text).to_bytes(8, "little") + text.encode()


@pytest.mark.parametrize(
    ("shape", "offsets"),
    [
        ("[1e999]", "[0,4]"),
        ("[[1]]", "[0,4]"),
        ("[-1]", "[0,-4]"),
        ("[null]", "[0,4]"),
        ("[1]", "[0,8]"),
        ("[1]", "[0.0,4.0]"),
        ("[1]", "[false,4]"),
        ("[1]", "[4,8]"),
        ("[1]", "[0]"),
        ("[1]", '["0",4]'),
        ("[0,4294967296]", "[0,0]"),
    ],
)
def test_a_header_that_no_writer_writes(shape: str, offsets: str) -> None:
    """Shapes and offsets of any kind that do not fit are damage, not a crash."""
    head = header(f'{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}')
    with pytest.raises(CorruptCheckpointError, match="header is damaged"):
        parse_header(head, len(head) + 4, "here")


def test_a_header_whose_names_are_not_in_the_order_of_the_bytes() -> None:
    """As other writers of safetensors may leave it."""
    head = header(
        '{"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]},'
        '"a":{"dtype":"I32","shape":[],"data_offsets":[0,4]}}'
    )
    read = parse_header(head, len(head) + 12, "here")
    assert list(read.tensors) == ["a", "b"]
    found = {"a": torch.tensor(0), "b": torch.zeros(2)}
    assert row(read, found)[1:] == [found["a"], found["b"]]


def test_a_row_holds_the_owner_of_its_bytes() -> None:
    """The memory of a view is not freed while it is to be written."""
    tensor = torch.arange(100_000)
    chunks = Chunks([byte_view(tensor)], owner=[tensor])
    expected = tensor.numpy().tobytes()
    del tensor
    gc.collect()
    others = [torch.zeros(100_000, dtype=torch.int64) for _ in range(4)]
    assert b"".join(chunks[0]) == expected
    assert len(others) == 4


def test_ties_among_tensors_that_begin_at_one_address() -> None:
    """Only equal bytes of equal type are stored once; what is empty is tied to nothing."""
    whole = torch.arange(4.0)
    named = {
        "whole": whole,
        "first": whole[:2],
        "again": whole.view(4),
        "as integers": whole.view(torch.int32),
        "first again": whole[:2],
        "empty": whole[:0],
        "also empty": whole[:0],
    }
    assert first_of_tied(named) == {
        "whole": "whole",
        "first": "first",
        "again": "whole",
        "as integers": "as integers",
        "first again": "first",
        "empty": "empty",
        "also empty": "also empty",
    }


def test_load_hooks_of_an_optimizer_see_numbers_and_may_change_the_state(tmp_path: Path) -> None:
    """Without hooks, what was read in place is handed to torch under the parameters themselves."""
    model = small_model()
    optimizer = adamw(model)
    model(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    expected = optimizer.state_dict()["state"]
    Checkpointer(tmp_path, blocking=True).checkpoint(1, model=model, optimizer=optimizer)
    seen: list[set[Any]] = []

    def double(_: Any, state: dict[str, Any]) -> dict[str, Any]:
        seen.append(set(state["state"]))
        changed = {n: {**v, "exp_avg": v["exp_avg"] * 2} for n, v in state["state"].items()}
        return {**state, "state": changed}

    before = {number: values["exp_avg"].clone() for number, values in expected.items()}
    handle = optimizer.register_load_state_dict_pre_hook(double)
    Checkpointer(tmp_path).start(model, optimizer)
    handle.remove()
    assert seen == [set(expected)]
    for number, values in optimizer.state_dict()["state"].items():
        assert torch.equal(values["exp_avg"], before[number] * 2)


def test_an_optimizer_with_a_method_of_its_own_gets_numbers(tmp_path: Path) -> None:
    """Its load_state_dict sees the keys that torch gives, not names."""

    class Own(torch.optim.SGD):
        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            assert all(type(number) is int for number in state_dict["state"])
            super().load_state_dict(state_dict)

    model = small_model()
    optimizer = Own(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    expected = [v["momentum_buffer"].clone() for v in optimizer.state.values()]
    Checkpointer(tmp_path, blocking=True).checkpoint(1, model=model, optimizer=optimizer)
    Checkpointer(tmp_path).start(model, optimizer)
    restored = [values["momentum_buffer"] for values in optimizer.state.values()]
    assert all(torch.equal(a, b) for a, b in zip(restored, expected, strict=True))


@pytest.mark.parametrize("fused", [True, False])
def test_the_step_of_a_fused_optimizer_lies_where_torch_would_put_it(
    tmp_path: Path, *, fused: bool
) -> None:
    """A fused one counts beside its parameters, in float32; another one wherever it has counted."""
    model = nn.Linear(3, 2)
    first, ours, torchs = (torch.optim.AdamW(model.parameters(), fused=fused) for _ in range(3))
    model(torch.ones(3)).sum().backward()
    first.step()
    for values in first.state.values():
        values["step"] = values["step"].double()  # as code of another torch might have counted
    Checkpointer(tmp_path, blocking=True).checkpoint(1, model=model, optimizer=first)
    Checkpointer(tmp_path).start(model, ours)
    torchs.load_state_dict(first.state_dict())
    for parameter in model.parameters():
        restored, expected = ours.state[parameter], torchs.state[parameter]
        assert restored["step"].dtype == expected["step"].dtype
        assert all(torch.equal(restored[key], expected[key]) for key in expected)
