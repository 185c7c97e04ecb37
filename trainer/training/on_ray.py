"""The same training in processes of a Ray cluster, through Ray Train."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from trainer.data.files import expand
from trainer.errors import Failed, UserError
from trainer.training.options import Job

STATE = ".ray"
"""Ray Train's own notes in OUT; they go when the training ends."""


def train_on_ray(job: Job, processes: int) -> None:
    """Train in so many processes, each with a GPU where the device is `cuda`, or `auto` and there are enough.

    The cluster is that of `RAY_ADDRESS`, one that runs on this machine, or a new one. OUT and the data must lie where
    every node sees them.

    Raises:
        UserError: as `loop.train`, or the cluster is too small.
        Failed: as `loop.train`, or a process died.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    if processes < 1:
        raise UserError(f"--ray {processes}: at least 1 is wanted")
    job = replace(job, data=tuple(expand(job.data, {})), val_data=tuple(_files(job)), out=job.out.absolute())
    started = _join()
    try:
        job = replace(job, device=_device(job.device, processes, ray.cluster_resources()))
        trainer = TorchTrainer(
            _rank,
            train_loop_config={"job": job},
            scaling_config=ScalingConfig(num_workers=processes, use_gpu=job.device == "cuda"),
            run_config=RunConfig(
                name="train", storage_path=str(job.out / STATE), failure_config=FailureConfig(max_failures=0)
            ),
        )
        _fit(trainer)
    finally:
        shutil.rmtree(job.out / STATE, ignore_errors=True)
        if started:
            ray.shutdown()


def _files(job: Job) -> list[str]:
    return expand(job.val_data, {}) if job.val_data else []


def _join() -> bool:
    """Whether a connection was made here."""
    import ray

    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(logging_level=logging.WARNING, include_dashboard=False)
    return True


def _device(wanted: str, processes: int, there: Mapping[str, float]) -> str:
    gpus, cpus = int(there.get("GPU", 0)), int(there.get("CPU", 0))
    device = "cuda" if wanted == "cuda" or (wanted == "auto" and gpus >= processes) else "cpu"
    has = gpus if device == "cuda" else cpus
    if has < processes:
        kind = "GPUs" if device == "cuda" else "CPUs"
        raise UserError(f"--ray {processes}: the cluster has {has} {kind}, and each process needs one")
    return device


def _rank(config: dict[str, Any]) -> None:
    """What each process does; Ray Train has made the group."""
    from trainer.training.loop import train

    train(config["job"])


def _fit(trainer: Any) -> None:
    from ray.train import TrainingFailedError

    try:
        trainer.fit()
    except TrainingFailedError as error:
        for problem in _causes(error):
            if isinstance(problem, UserError | Failed):
                raise type(problem)(str(problem)) from error
        raise Failed(f"--ray: {' '.join(str(error).split())[:300]}") from error


def _causes(error: BaseException) -> list[BaseException]:
    """What happened in the processes, as far as Ray hands it on."""
    found = []
    for each in getattr(error, "worker_failures", {}).values():
        while each is not None:
            found.append(each)
            each = getattr(each, "cause", None) or each.__cause__
    return found
