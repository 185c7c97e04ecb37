"""What a run would do: per stage up to date, to resume or to run, and why."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from curation import commit, manifest
from curation.manifest import Manifest, digest
from curation.options import semantic_values
from curation.recipe import Recipe, schema_before
from curation.redact import redact_tree
from curation.workspace import StageRun, UnitWorkspace
from stages.base import Stage, Unit
from stages.errors import UserError
from stages.storage import Store, file_system, is_local, strip_protocol

BIG_FILE = 8 << 20
"""Digests of files larger than this are remembered beside the run."""
DIGESTS = ".digests.json"

UP_TO_DATE, RESUME, RUN = "up to date", "to resume", "to run"


@dataclass(frozen=True, kw_only=True)
class Step:
    """One stage of a run, as it stands now."""

    stage: Stage
    state: str
    """`up to date`, `to resume` or `to run`."""
    why: str
    fingerprint: str | None
    """None while a stage before it has yet to run."""
    manifest: Manifest | None
    inputs: tuple[Mapping[str, Any], ...] = ()


def steps(recipe: Recipe, store: Store, *, force: Sequence[str] = (), allow_stale: bool = False) -> list[Step]:
    """The state of every stage of the recipe, from manifests and records alone."""
    found: list[Step] = []
    waiting_for: str | None = None
    for index, stage in enumerate(recipe.stages):
        before = found[index - 1] if index else None
        done = manifest.load(store, stage.name)
        if waiting_for and not (allow_stale and before and before.manifest):
            why = f"after {waiting_for}"
            found.append(Step(stage=stage, state=RUN, why=why, fingerprint=None, manifest=done))
            continue
        step = _step(recipe, store, stage, before.manifest if before else None, done, force)
        found.append(step)
        if step.state != UP_TO_DATE:
            waiting_for = waiting_for or stage.name
    return found


def _step(
    recipe: Recipe, store: Store, stage: Stage, before: Manifest | None, done: Manifest | None, force: Sequence[str]
) -> Step:
    inputs = _inputs(recipe, before)
    fingerprint = stage_fingerprint(recipe, store, stage, inputs)
    state, why = RUN, "not run yet"
    if stage.name in force:
        why = "forced"
    elif done and done.fingerprint == fingerprint:
        state, why = UP_TO_DATE, f"{done.kept:,} rows kept"
    elif fingerprint in commit.runs(store, stage.name):
        state, why = RESUME, "interrupted"
    elif done:
        why = _difference(stage, done, inputs)
    return Step(stage=stage, state=state, why=why, fingerprint=fingerprint, manifest=done, inputs=inputs)


def _inputs(recipe: Recipe, before: Manifest | None) -> tuple[Mapping[str, Any], ...]:
    if before is not None:
        return ({"stage": before.stage, "output_digest": before.output_digest},)
    return tuple(
        {
            "source": source.name,
            "files": sum(len(files) for files in source.files.values()),
            "digest": digest(
                [source.digest(), {role: [[f.url, f.size, f.version] for f in fs] for role, fs in source.files.items()}]
            ),
        }
        for source in recipe.sources
    )


def stage_fingerprint(recipe: Recipe, store: Store, stage: Stage, inputs: Sequence[Mapping[str, Any]]) -> str:
    """Identity of a stage's result: semantic options, named files, version, inputs, and seed or order where used."""
    return digest(
        {
            "stage": stage.name,
            "version": stage.version,
            "options": semantic_values(stage.config),
            "files": [file_sha256(store, path, recipe) for path in stage.named_files()],
            "inputs": list(inputs),
            "seed": recipe.seed if stage.uses_seed else None,
            "subset": recipe.subset if stage.name == "shards" else None,
            "order": [source.name for source in recipe.sources] if stage.uses_source_order else None,
        }
    )


def file_sha256(store: Store, path: str, recipe: Recipe) -> str:
    """Digest of a file that an option names; of large ones it is remembered while size and time stay."""
    options = {} if is_local(path) else recipe.storage_options
    filesystem = file_system(path, options.get(path.split("://")[0], options))
    info = filesystem.info(strip_protocol(path))
    outside = Store(path.rpartition("/")[0], options)
    if info["size"] < BIG_FILE:
        return outside.sha256(path)
    identity = json.dumps([path, info["size"], str(info.get("mtime") or info.get("ETag") or info.get("LastModified"))])
    try:
        known = json.loads(store.read(DIGESTS))
    except (FileNotFoundError, ValueError):
        known = {}
    if identity not in known:
        known[identity] = outside.sha256(path)
        store.write(DIGESTS, json.dumps(known, indent=1, sort_keys=True).encode())
    return str(known[identity])


def _difference(stage: Stage, done: Manifest, inputs: Sequence[Mapping[str, Any]]) -> str:
    """Why a finished stage is stale."""
    if done.stage_version != stage.version:
        return f"the stage's version is {stage.version}, was {done.stage_version}"
    changed = list(_changes(redact_tree(semantic_values(stage.config)), done.config))
    if changed:
        return "; ".join(changed)
    if list(inputs) != [dict(entry) for entry in done.inputs]:
        return _changed_input(inputs, done.inputs)
    return "a file that an option names has changed, or the order of sources or the seed"


def _changes(now: Mapping[str, Any], before: Mapping[str, Any], within: str = "") -> Iterator[str]:
    """`option is …, was …` for each option that differs, those of inner mappings by their own names."""
    for name, value in now.items():
        was = before.get(name)
        if isinstance(value, Mapping) and isinstance(was, Mapping):
            yield from _changes(value, was, f"{within}{name}.")
        elif value != was:
            yield f"{within}{name} is {json.dumps(value)}, was {json.dumps(was)}"


def _changed_input(now: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]]) -> str:
    old = {entry.get("source"): entry for entry in before}
    new = {entry.get("source"): entry for entry in now}
    if None in new:
        return f"the output of {now[0]['stage']} has changed"
    added, gone = [name for name in new if name not in old], [name for name in old if name not in new]
    if added:
        return f"source {added[0]} is new"
    if gone:
        return f"source {gone[0]} is gone"
    return f"source {next((name for name in new if new[name] != old[name]), '?')} has changed"


def stage_run(recipe: Recipe, store: Store, step: Step, *, generation: int = 0) -> StageRun:
    """What the tasks of a stage need to know."""
    if step.fingerprint is None:
        raise UserError(f"stage {step.stage.name} waits: {step.why}")
    names = [stage.name for stage in recipe.stages]
    index = names.index(step.stage.name)
    return StageRun(
        store=store,
        stage=step.stage.name,
        fingerprint=step.fingerprint,
        generation=generation,
        input_stage=names[index - 1] if index else None,
        input_schema=schema_before(recipe.stages, step.stage.name),
        seed=recipe.seed,
        subset=recipe.subset,
        sources=tuple(source.name for source in recipe.sources),
    )


def describe(recipe: Recipe, store: Store, found: Sequence[Step]) -> str:
    """The lines `--plan` prints."""
    lines = []
    for step in found:
        text = f"{step.stage.name:<10} {step.state}: {step.why}"
        if step.state != UP_TO_DATE:
            text += f"; {_amount(recipe, store, step)}"
        lines.append(text)
    return "\n".join(lines)


def _amount(recipe: Recipe, store: Store, step: Step) -> str:
    if step.fingerprint is None:
        return "rows to do are known once the stage before it has run"
    run = stage_run(recipe, store, step)
    ws = UnitWorkspace(run, "plan", Unit(id="plan"))
    rows = step.stage.preview(ws)
    adopt, do = rows if rows is not None else _units_amount(run, step.stage, ws)
    estimate = step.stage.estimate(ws)
    return f"{adopt:,} rows to adopt, {do:,} to do" + (f"; {estimate}" if estimate else "")


def _units_amount(run: StageRun, stage: Stage, ws: UnitWorkspace) -> tuple[int, int]:
    """For stages without expensive rows: what is committed of the first phase, and what is not."""
    if run.input_stage is not None:
        return 0, sum(file.rows for file in ws.input_files())
    phase = stage.phases()[0]
    units = phase.cut(ws)
    ready = {record.unit: record for record in commit.records(run.store, run.stage, run.run, phase.name)}
    equal = {record.digest: record for record in run.earlier(phase.name) if record.digest}
    found = [ready.get(unit.id) or equal.get(unit.digest or "") for unit in units]
    adopted = sum(entry["in"] for record in found if record for entry in record.counts.values())
    return adopted, sum(unit.rows for unit, record in zip(units, found, strict=True) if record is None)
