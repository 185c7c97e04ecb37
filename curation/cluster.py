"""On more than one node: prove that each sees the same root, sources and models before work starts."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from curation import redact
from curation.recipe import Recipe
from stages.errors import UserError
from stages.storage import Store, is_local


def prove_shared(store: Store, recipe: Recipe) -> None:
    """Raise `UserError` naming the path and the node when a node does not see what the run needs."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return
    probe, token = f".probe-{uuid.uuid4().hex[:8]}", uuid.uuid4().hex
    store.write(probe, token.encode())
    paths = _local_paths(recipe)
    try:
        tasks = {
            node["NodeManagerAddress"]: ray.remote(num_cpus=0)(_missing)
            .options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
            .remote(store, probe, token, paths)
            for node in nodes
        }
        for address, task in tasks.items():
            missing = ray.get(task)
            if missing:
                raise UserError(
                    f"node {address} does not see {redact.redact(missing)}; put it where every node can read it"
                )
    finally:
        store.remove(probe)


def _local_paths(recipe: Recipe) -> list[str]:
    """Files that tasks open by a plain path: of each source and list the first, and every file an option names."""
    found = [path for stage in recipe.stages for path in stage.named_files()]
    for source in recipe.sources:
        found += [files[0].url for files in (*source.files.values(), source.only, source.except_) if files]
    return [path for path in dict.fromkeys((*found, *recipe.blocklist)) if is_local(path)]


def _missing(store: Store, probe: str, token: str, paths: Sequence[str]) -> str | None:
    """The first path this node does not see, in a task on that node."""
    try:
        if store.read(probe).decode() != token:
            return store.url
    except OSError:
        return store.url
    return next((path for path in paths if not os.path.exists(path)), None)
