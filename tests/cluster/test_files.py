"""The files in cluster/: what can be checked of them without a cluster."""

from __future__ import annotations

import json
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"


def _yaml(name: str) -> Any:
    return yaml.safe_load((CLUSTER / name).read_text())


def test_ray_up_fits_the_autoscalers_schema() -> None:
    import ray.autoscaler

    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    config = _yaml("ray-up.yaml")
    jsonschema.validate(config, schema)
    assert config["head_node_type"] in config["available_node_types"]


def test_ray_up_knows_only_keys_of_the_schema() -> None:
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    assert set(_yaml("ray-up.yaml")) <= set(schema["properties"])


def test_every_file_keeps_token_authentication_on() -> None:
    assert _yaml("rayjob.yaml")["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    commands = [*_yaml("ray-up.yaml")["head_start_ray_commands"], *_yaml("ray-up.yaml")["worker_start_ray_commands"]]
    assert all("RAY_AUTH_MODE=token" in command for command in commands if "ray start" in command)
    for name in ("local-head.sh", "slurm.sbatch"):
        assert "RAY_AUTH_MODE=token" in (CLUSTER / name).read_text()
    assert not any("RAY_AUTH_MODE=disabled" in path.read_text() for path in CLUSTER.iterdir())


def test_rayjob_uses_a_ray_that_the_project_accepts() -> None:
    from packaging.requirements import Requirement

    needs = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    ray = next(need for need in map(Requirement, needs) if need.name == "ray")
    assert _yaml("rayjob.yaml")["spec"]["rayClusterSpec"]["rayVersion"] in ray.specifier


def test_rayjob_mounts_what_it_names() -> None:
    spec = _yaml("rayjob.yaml")["spec"]["rayClusterSpec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("name", ["local-head.sh", "slurm.sbatch"])
def test_scripts_are_bash(name: str) -> None:
    bash = shutil.which("bash")
    assert bash
    checked = subprocess.run([bash, "-n", str(CLUSTER / name)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_dockerfile_copies_what_is_there() -> None:
    lines = (CLUSTER / "Dockerfile").read_text().splitlines()
    copied = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
    assert copied
    assert all((ROOT / name).exists() for name in copied if name != "README.md")
