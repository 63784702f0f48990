"""The registry of surroundings: who runs this process, asked without importing Ray."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from conftest import small_model
from ray_imuckpt import Checkpointer, ImuckptError
from ray_imuckpt.runtime import ray_driver, registry

MINUTE = timedelta(seconds=60)

WITHOUT_RAY = """if True:
    import sys
    sys.modules["ray"] = None  # not installed
    from datetime import timedelta
    from ray_imuckpt import Checkpointer
    from ray_imuckpt.runtime import registry
    print(registry.session(timedelta(seconds=60)).surroundings)
    checkpointer = Checkpointer(sys.argv[1])
    print(checkpointer.read(1).epoch)
    for call in (checkpointer.run_config, lambda: checkpointer.get(1)):
        try:
            call()
        except Exception as error:
            print(type(error).__name__, error)
    print(*(name for name in sys.modules if name.split(".")[0] == "ray" and sys.modules[name]))
"""


def test_a_process_without_ray_has_surroundings_and_hears_what_needs_it(tmp_path: Path) -> None:
    """Nothing of Ray is imported for a script; what needs Ray's types says what to install."""
    checkpointer = Checkpointer(tmp_path)
    checkpointer.checkpoint(1, model=small_model())
    checkpointer.wait()
    environment = {key: os.environ[key] for key in os.environ if "TORCHELASTIC" not in key}
    lines = subprocess.run(
        [sys.executable, "-c", WITHOUT_RAY, str(tmp_path)],
        env=environment, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    assert lines[:2] == ["script", "1"]
    assert len(lines) == 7, lines
    for error, hint in (lines[2:4], lines[4:6]):
        assert "No module named 'ray" in error
        assert "Install what it names" in hint
    assert lines[6] == ""


def test_a_session_stays_while_its_surroundings_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torchrun is known by its variables, and a process may come to have them, and others."""
    for name in ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    script = registry.session(MINUTE)
    assert script.surroundings == "script"
    assert script.identity == (None, False)
    assert registry.session(MINUTE, script) is script

    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    first = registry.session(MINUTE, script)
    assert first.surroundings == "torchrun"
    assert str(first.identity.id).startswith(f"torchelastic-job-{os.getppid()}")
    assert not first.identity.may_be_restart
    assert registry.session(MINUTE, first) is first
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert registry.session(MINUTE).identity == (first.identity.id, True)


def test_a_launcher_that_started_several_is_known_by_its_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They would all write one checkpoint; a variable without a number starts nothing."""
    for alone in ("", "1", "auto"):
        monkeypatch.setenv("WORLD_SIZE", alone)
        assert registry.session(MINUTE).gang.world_size == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ImuckptError, match="init_process_group"):
        registry.session(MINUTE)


@pytest.mark.parametrize("thing", [None, 3, "checkpoint=3", Path("checkpoint=3"), object()])
def test_what_is_no_checkpoint_of_ray_is_none(thing: object) -> None:
    """Ray's checkpoints are known by their class, not by names of attributes."""
    pytest.importorskip("ray.train")
    assert ray_driver.directory_of(thing) is None


def test_of_result_refuses_what_is_no_result(tmp_path: Path) -> None:
    """Whatever is passed instead of a result is named in the error."""
    pytest.importorskip("ray.train")
    with pytest.raises(TypeError, match="a Result or a ResultGrid of Ray, not a str"):
        Checkpointer.of_result(str(tmp_path))
