"""The contract of a storage: what is put and removed only while it is what was seen."""

from __future__ import annotations

import pytest

from contract.subjects import Subject
from ray_imuckpt.storage import ConflictError


class ConditionContract:
    """What every storage promises to one of several writers."""

    def test_a_file_is_created_once(self, subject: Subject) -> None:
        """Whoever comes second is told, and changes nothing."""
        subject.storage.put_if("a/m", b"1", None)
        for again in (subject.storage, subject.again()):
            with pytest.raises(ConflictError):
                again.put_if("a/m", b"2", None)
        assert subject.side.look("a/m") == b"1"
        assert subject.side.names() == ["a/m"]

    def test_a_file_is_replaced_only_while_it_is_what_was_seen(self, subject: Subject) -> None:
        """By another's content, or by none, it is not."""
        subject.storage.put("a/m", b"1")
        subject.storage.put_if("a/m", b"2", b"1")
        with pytest.raises(ConflictError):
            subject.storage.put_if("a/m", b"3", b"1")
        assert subject.side.look("a/m") == b"2"
        subject.side.plant("a/m", b"another's")
        with pytest.raises(ConflictError):
            subject.storage.put_if("a/m", b"3", b"2")
        with pytest.raises(ConflictError):
            subject.storage.put_if("a/none", b"1", b"0")
        assert subject.side.look("a/m") == b"another's"
        assert subject.side.names() == ["a/m"]

    def test_a_file_is_removed_only_while_it_is_what_was_seen(self, subject: Subject) -> None:
        """And whether it was is told."""
        subject.storage.put("a/m", b"1")
        assert not subject.storage.delete_if("a/m", b"0")
        assert subject.side.names() == ["a/m"]
        assert subject.storage.delete_if("a/m", b"1")
        assert not subject.storage.delete_if("a/m", b"1")
        assert subject.side.names() == []
