"""rayjob.yaml is one that KubeRay accepts, judged by the parts of its schema that the file uses.

The schema below says, in short, what `ray-operator/config/crd/bases/ray.io_rayjobs.yaml` of KubeRay
says of these fields (version v1): their types, which are required, and that there are no others.
The file was also held against all of that definition, unknown fields refused, as a server does it.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

ROOT = Path(__file__).parents[1]
Json = dict[str, Any]


def thing(required: str = "", **fields: Json) -> Json:
    """An object of these fields and no others."""
    return {
        "type": "object",
        "properties": fields,
        "required": required.split(),
        "additionalProperties": False,
    }


def many(item: Json) -> Json:
    return {"type": "array", "items": item}


def named(value: Json) -> Json:
    return {"type": "object", "additionalProperties": value}


TEXT, FLAG, COUNT = {"type": "string"}, {"type": "boolean"}, {"type": "integer"}
QUANTITY = {
    "type": ["integer", "string"],
    "pattern": r"^[+-]?(\d+(\.\d*)?|\.\d+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?(\d+(\.\d*)?|\.\d+))?$",
}
ENVIRONMENT = many(thing("name", name=TEXT, value=TEXT))
SECRETS = many(thing(secretRef=thing(name=TEXT, optional=FLAG)))
CONTAINER = thing(
    "name", name=TEXT, image=TEXT, env=ENVIRONMENT, envFrom=SECRETS,
    resources=thing(requests=named(QUANTITY), limits=named(QUANTITY)),
)  # fmt: skip
POD = thing(
    spec=thing(
        "containers", containers=many(CONTAINER), serviceAccountName=TEXT,
        terminationGracePeriodSeconds=COUNT, nodeSelector=named(TEXT),
        tolerations=many(thing(key=TEXT, operator=TEXT, effect=TEXT)),
    )
)  # fmt: skip
HEAD = thing("template", rayStartParams=named(TEXT), template=POD)
WORKERS = thing(
    "groupName maxReplicas minReplicas template", groupName=TEXT, replicas=COUNT, minReplicas=COUNT,
    maxReplicas=COUNT, rayStartParams=named(TEXT), template=POD,
)  # fmt: skip
CLUSTER = thing(
    "headGroupSpec", rayVersion=TEXT, enableInTreeAutoscaling=FLAG, headGroupSpec=HEAD,
    autoscalerOptions=thing(idleTimeoutSeconds=COUNT), workerGroupSpecs=many(WORKERS),
)  # fmt: skip
RAYJOB = thing(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=thing("name", name=TEXT),
    spec=thing(
        entrypoint=TEXT, backoffLimit=COUNT, shutdownAfterJobFinishes=FLAG,
        ttlSecondsAfterFinished=COUNT, rayClusterSpec=CLUSTER,
    ),
)  # fmt: skip


def faults(job: Json) -> list[str]:
    """What the schema has against a manifest."""
    Draft202012Validator.check_schema(RAYJOB)
    found = Draft202012Validator(RAYJOB).iter_errors(job)
    return [f"{'/'.join(map(str, error.path))}: {error.message}" for error in found]


@pytest.fixture
def job() -> Json:
    return yaml.safe_load((ROOT / "rayjob.yaml").read_text())


def pods(job: Json) -> list[Json]:
    """The pods of the head and of the workers."""
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def test_kuberay_accepts_it(job: Json) -> None:
    """No field is unknown, of another type, or missing."""
    assert faults(job) == []


def group(job: Json) -> Json:
    return job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda j: j["spec"].update(backofLimit=5), "spec: .*backofLimit"),
        (lambda j: j["spec"].update(backoffLimit="five"), "spec/backoffLimit: 'five'"),
        (lambda j: j["spec"]["rayClusterSpec"].pop("headGroupSpec"), "headGroupSpec"),
        (lambda j: group(j).pop("maxReplicas"), "maxReplicas"),
        (lambda j: group(j)["rayStartParams"].update({"num-cpus": 0}), "num-cpus: 0 is not"),
        (lambda j: pods(j)[1]["containers"][0].pop("name"), "containers/0: 'name'"),
        (
            lambda j: pods(j)[1]["containers"][0]["resources"]["limits"].update(memory="28GiB"),
            "memory: '28GiB'",
        ),
    ],
)
def test_a_broken_copy_is_refused(
    job: Json, damage: Callable[[Json], object], complaint: str
) -> None:
    """Else the schema would show nothing."""
    broken = copy.deepcopy(job)
    damage(broken)
    assert re.search(complaint, "\n".join(faults(broken)))


def test_its_ray_is_that_which_is_tested_here(job: Json) -> None:
    """In all pods, and in the image that the document builds."""
    pinned = re.search(r"^ray==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == pinned[1]
    images = {pod["containers"][0]["image"] for pod in pods(job)}
    assert len(images) == 1, "one Ray and one Python for all"
    tag = images.pop().rpartition(":")[2]
    assert tag.startswith(f"{pinned[1]}-py3")
    assert f"FROM rayproject/ray:{tag}\n" in (ROOT / "docs" / "cluster.md").read_text()


def test_its_script_is_an_example_with_these_options(job: Json) -> None:
    """It trains on as many workers as there may be, and every pod reaches the store."""
    program, script, *options = job["spec"]["entrypoint"].split()
    assert program == "python"
    source = (ROOT / "examples" / Path(script).name).read_text()
    assert [o for o in options if o.startswith("--") and f'"{o}"' not in source] == []
    workers = int(options[options.index("--workers") + 1])
    assert workers == group(job)["maxReplicas"]
    assert options[options.index("--dir") + 1].startswith("s3://")
    for pod in pods(job):
        assert pod["serviceAccountName"]
        assert pod["containers"][0]["envFrom"]
        assert [each["name"] for each in pod["containers"][0]["env"]] == ["AWS_REGION"]
