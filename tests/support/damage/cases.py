"""The forgeries, by name: what each does to a sound checkpoint (`Forged`)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from ray_imuckpt.repository.records import seal
from support.damage.forgeries import KINDS, Forged, replaced

CASES: dict[str, Callable[[Forged], object]] = {}
SOUND: set[str] = set()
"""The names of those that leave all that is used as it was: they are accepted."""


def case(name: str, *, sound: bool = False) -> Callable[[Any], Any]:
    """Add a forgery."""

    def add(forge: Callable[[Forged], object]) -> Callable[[Forged], object]:
        CASES[name] = forge
        if sound:
            SOUND.add(name)
        return forge

    return add


def fields(**changes: Any) -> Callable[[Forged], None]:
    """Other fields in the manifest."""

    def forge(it: Forged) -> None:
        it.manifest.update(changes)
        it.seal()

    return forge


def trees(change: Callable[[dict[str, Any]], object]) -> Callable[[Forged], None]:
    """Other trees."""
    return lambda it: it.trees(change)


def log(node: Any) -> Callable[[Forged], None]:
    """Another log."""
    return trees(lambda t: t.update(log=node))


def optimizer(change: Callable[[dict[str, Any]], object]) -> Callable[[Forged], None]:
    """Another tree of the optimizer."""
    return trees(lambda t: change(t["optimizer"]))


def rank(change: Callable[[dict[str, Any]], object]) -> Callable[[Forged], None]:
    """Another state of rank 0."""
    return trees(lambda t: change(t["ranks"]["0"]))


def metadata(**notes: str) -> Callable[[Forged], None]:
    """Other keys of ours in the header of the model's file."""
    notes = {f"imuckpt.{name}": text for name, text in notes.items()}
    return lambda it: it.header("model", lambda h: h["__metadata__"].update(notes))


for kind in KINDS:
    case(f"manifest: a {kind}")(lambda it, k=kind: replaced(it.here / "manifest.json", k))
    case(f"lineage: a {kind}", sound=True)(lambda it, k=kind: replaced(it.top / "lineage.json", k))
    for part, suffix in (("model", "safetensors"), ("state", "json")):
        case(f"{part}: a {kind}")(lambda it, k=kind, p=part, s=suffix: replaced(it.path(p, s), k))

CASES |= {
    "metrics: of no tag": fields(metrics={"loss": {"$": "nope"}}),
    "metrics: no dict": fields(metrics={"$": "tuple", "v": [1]}),
    "metrics: a tensor": fields(metrics={"loss": {"$": "tensor", "v": "0.weight"}}),
    "files: none": fields(files=[]),
    "header: a tie that overrides": metadata(aliases=json.dumps({"0.weight": "1.weight"})),
    "header: extra of a list": metadata(extra="[1]"),
    "header: extra of a number": metadata(extra="5"),
    "header: extra that is not ASCII": metadata(extra="\u20ac"),
    "header: versions of a list": metadata(versions="[1, 2]"),
    "header: versions of texts": metadata(versions='{"": "x"}'),
    "header: none": lambda it: it.write("model", (10**8).to_bytes(8, "little") + b"{}"),
    "header: of 50 MB of spaces": lambda it: it.write(
        "model", (50 * 10**6).to_bytes(8, "little") + b" " * 50 * 10**6
    ),
    "header: deep": lambda it: it.write(
        "model", (200_005).to_bytes(8, "little") + b'{"a":' + b"[" * 200_000
    ),
    "state: half a surrogate pair": lambda it: it.write("state", b'"\\ud800"', "json"),
    "state: a list": lambda it: it.write("state", b"[]", "json"),
    "state: deep": lambda it: it.write("state", b'{"log":' + b"[" * 200_000, "json"),
    "state: NaN": log(float("nan")),
    "state: objects of lists": trees(lambda t: t.update(objects=[[1]])),
    "state: classes of texts": trees(lambda t: t.update(classes=["abc"])),
    "state: other of a list": trees(lambda t: t.update(other=[])),
    "state: other of a tuple": trees(lambda t: t.update(other={"$": "tuple", "v": []})),
    "state: no ranks": trees(lambda t: t.update(ranks={})),
    "state: ranks of nothing": trees(lambda t: t.update(ranks={"0": None})),
    "state: a list of ranks": trees(lambda t: t.update(ranks=[t["ranks"]["0"]])),
    "state: a rank too many": trees(lambda t: t["ranks"].update({"1": t["ranks"]["0"]})),
    "state: a rank of no number": trees(lambda t: t["ranks"].update(a=t["ranks"].pop("0"))),
    "world_size: two": fields(world_size=2),
    "world_size: 2**31": fields(world_size=2**31),
    "step: a text": fields(step="5"),
    "step: below zero": fields(step=-1),
    "log: a module of torch": log({"$": "dtype", "v": "_dynamo"}),
    "log: texts of 2 GB": log({"$": "strings", "dtype": "|S2000000000", "shape": [1], "v": ["a"]}),
    "log: many texts of 4 MB": log(
        [{"$": "strings", "dtype": "<U1000000", "shape": [1], "v": ["a"]}] * 1000
    ),
    "log: a scalar of 1 GB": log({"$": "scalar", "dtype": "<U268435455", "v": "AAAAAA=="}),
    "log: an array many times": log(
        [{"$": "array", "dtype": "<i8", "shape": [4], "v": "other.x"}] * 2
    ),
    "log: a deque without end": log({"$": "deque", "maxlen": 10**30, "v": [1]}),
    "log: time without end": log({"$": "timedelta", "v": [10**30, 0, 0]}),
    "log: keys that collide": log({"$": "set", "v": [i * (2**61 - 1) for i in range(60_000)]}),
    "rank: no state": rank(lambda r: r.clear()),
    "rank: no dict of objects": rank(lambda r: r.update(per_rank=[])),
    "rank: no generators": rank(lambda r: r.update(random=[])),
    "rank: no algorithm": rank(lambda r: r["random"].update(numpy={"$": "tuple", "v": []})),
    "rank: no tensor": rank(lambda r: r["random"].update(torch=[1])),
    "rank: cuda of numbers": rank(lambda r: r["random"].update(cuda=5)),
    "optimizer: a list": trees(lambda t: t.update(optimizer=[1])),
    "optimizer: no class": optimizer(lambda o: o.pop("class")),
    "optimizer: no groups": optimizer(lambda o: o.update(param_groups=None)),
    "optimizer: groups of texts": optimizer(lambda o: o.update(param_groups=["x"])),
    "optimizer: no parameters": optimizer(lambda o: o["param_groups"][0].update(params=None)),
    "optimizer: lists for names": optimizer(lambda o: o["param_groups"][0].update(params=[[1]])),
    "optimizer: no state": optimizer(lambda o: o.update(state=[])),
}  # fmt: skip


@case("header: bytes that lie elsewhere")
def _(it: Forged) -> None:
    it.header("model", lambda h: h["0.weight"].update(data_offsets=h["3.weight"]["data_offsets"]))


@case("lineage: deep", sound=True)
def _(it: Forged) -> None:
    (it.top / "lineage.json").write_bytes(b'{"format": 1, "abandoned": ' + b"[" * 200_000)


@case("lineage: everything is abandoned, twice", sound=True)
def _(it: Forged) -> None:
    text = seal({"format": 1, "abandoned": {}}).replace(b"{}", b'{}, "abandoned": {"2": {}}')
    (it.top / "lineage.json").write_bytes(text)


@case("model: a link to a file elsewhere with the same bytes", sound=True)
def _(it: Forged) -> None:
    path = it.path("model")
    os.rename(path, it.top / "elsewhere")
    path.symlink_to(it.top / "elsewhere")


@case("a file where a checkpoint would be", sound=True)
def _(it: Forged) -> None:
    (it.top / "checkpoint=9").touch()
    os.mkfifo(it.top / "checkpoint=10")
    (it.top / f"checkpoint={'9' * 200}").mkdir()
