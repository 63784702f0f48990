"""The JSON Schema of manifests, which is part of the norm, as a check."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from conftest import HERE


@cache
def validator() -> Draft202012Validator:
    """The schema, itself held against that of schemas."""
    schema = json.loads((HERE.parent / "docs" / "manifest.schema.json").read_bytes())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def faults(manifest: Any) -> list[str]:
    """What the schema has against a manifest."""
    return [error.message for error in validator().iter_errors(manifest)]


def check_all(directory: Path) -> int:
    """Hold every manifest below a directory against the schema; how many there were."""
    paths = sorted(directory.rglob("manifest.json"))
    found = {str(path): faults(json.loads(path.read_bytes())) for path in paths}
    assert not {path: told for path, told in found.items() if told}
    return len(paths)
