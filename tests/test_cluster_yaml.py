"""cluster.yaml is one that `ray up` accepts, judged by Ray itself; AWS is never asked."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]


def validate(config: dict[str, Any]) -> None:
    """What `ray up` does with the file before it first talks to the cloud.

    Private modules: Ray has no public way to validate a file without starting it. What they do is
    stable (fill in the provider's defaults, then check the whole against ray-schema.json).
    """
    try:
        from ray.autoscaler._private.util import prepare_config, validate_config
    except ImportError as error:
        pytest.fail(
            f"Ray's validation has moved ({error}). See what `ray up` calls now, in "
            "create_or_update_cluster of ray/autoscaler/_private/commands.py, and call it here."
        )
    validate_config(prepare_config(copy.deepcopy(config)))


@pytest.fixture
def config() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_ray_accepts_it(config: dict[str, Any]) -> None:
    """Ray's own check of cluster files passes."""
    validate(config)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda c: c.update(max_worker=4), "max_worker"),
        (lambda c: c.update(max_workers="four"), "four"),
        (lambda c: c.update(head_node_type="boss"), "head_node_type"),
        (lambda c: c["docker"].pop("container_name"), "container"),
        (lambda c: c["available_node_types"]["gpu_worker"].pop("resources"), "resources"),
        (lambda c: c["available_node_types"]["gpu_worker"].update(min_workers=5), "min_workers"),
        (lambda c: c["available_node_types"]["head"].update(gpus=1), "gpus"),
    ],
)
def test_ray_refuses_a_broken_copy(
    config: dict[str, Any], damage: Callable[[dict[str, Any]], object], complaint: str
) -> None:
    """Else Ray's check would show nothing."""
    damage(config)
    with pytest.raises(Exception, match=complaint):
        validate(config)


def test_images_are_of_the_ray_that_is_tested_here(config: dict[str, Any]) -> None:
    """The version of `constraints.txt`, and one Python for all nodes."""
    pinned = re.search(r"^ray==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned
    head, worker = config["docker"]["head_image"], config["docker"]["worker_image"]
    assert head.startswith(f"rayproject/ray:{pinned[1]}-py3")
    assert head.removesuffix("-cpu") == worker.removesuffix("-gpu"), (
        "one Ray and one Python for all"
    )


def test_every_node_reaches_the_checkpoints(config: dict[str, Any]) -> None:
    """All have the directory's URL, the right to the bucket, and s3fs."""
    assert any("RAY_IMUCKPT_DIR=s3://" in option for option in config["docker"]["run_options"])
    for node in config["available_node_types"].values():
        assert "IamInstanceProfile" in node["node_config"]
    assert any("s3fs" in command for command in config["setup_commands"])


def test_mounted_directories_exist(config: dict[str, Any]) -> None:
    """Each is in this repository."""
    for local in config["file_mounts"].values():
        assert (ROOT / local).is_dir()
