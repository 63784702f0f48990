"""The one contract that each backend's test subclasses, with a fixture `subject` of its own."""

from __future__ import annotations

from contract.conditions import ConditionContract
from contract.reading import ReadingContract
from contract.runs import RunContract
from contract.writing import WritingContract


class StorageContract(WritingContract, ConditionContract, ReadingContract, RunContract):
    """All that `ray_imuckpt.storage.Storage` promises, and a run on it."""
