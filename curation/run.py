"""`python -m curation.run RECIPE --root DIR`: run a recipe; what is up to date is not run again.

The whole run on one screen: read the recipe, look at what is there, do each stage that needs it, report.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

import yaml

from curation import lock, plan
from curation.console import exit_code, set_up_logging
from curation.manifest import Manifest
from curation.options import as_dict, listing
from curation.plan import UP_TO_DATE, Step
from curation.recipe import Recipe, load, root_store
from curation.redact import redact_tree
from stages.errors import UnitError, UserError
from stages.storage import Store

if TYPE_CHECKING:  # it imports Ray, which `--help` and `--plan` do without
    from curation.progress import Display

EXAMPLES = """examples:
  python -m curation.run manifests/recipes/pub11.yaml --root runs/pub11
  python -m curation.run pub11.yaml --root s3://bucket/pub11 --set stages.dedup.radius=4
  python -m curation.run pub11.yaml --root runs/pub11 --plan
  python -m curation.run pub11.yaml --root runs/pub11 --from dedup
  python -m curation.run pub11.yaml --root runs/pub11 --retry-failed

exit codes: 0 done; 1 the run failed (it resumes with the same command); 2 the recipe or the command line is wrong
"""

FOR_THE_REPORT = ("curation.report", "matplotlib.figure", "matplotlib.backends.backend_agg", "pandas")
"""Modules that take a second to import; pyarrow asks for the last where it is installed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a recipe; returns the exit code."""
    args = parser().parse_args(argv)
    set_up_logging(debug=args.debug)
    return exit_code(lambda: run(args), debug=args.debug)


def run(args: argparse.Namespace) -> int:
    """Do what the command line asks for."""
    recipe = load(args.recipe, args.set)
    store = root_store(args.root, recipe)
    chosen = choose(recipe, args)
    found = plan.steps(recipe, store, force=args.force, allow_stale=args.allow_stale)
    if args.plan:
        print(plan.describe(recipe, store, found))
        return 0
    check_before(found, chosen, allow_stale=args.allow_stale)
    with lock.held(store):
        import ray

        from curation import cluster, execute
        from curation.progress import Display

        with ThreadPoolExecutor(1) as aside:  # Ray's processes take seconds to start, in which this one would wait
            importing = [aside.submit(import_module, name) for name in FOR_THE_REPORT]
            started = execute.start_ray(debug=args.debug)
        report = importing[0].result()
        cluster.prove_shared(store, recipe)
        store.write("recipe.yaml", yaml.safe_dump(recipe.effective(), sort_keys=False, allow_unicode=True).encode())
        display = Display()
        for name in chosen:
            bring_up_to_date(recipe, store, name, args, display)
        print(report.build(store))
        if started:
            ray.shutdown()  # in this thread: beside the report, a busy machine saw runs end with code 1 and no word
    return 0


def choose(recipe: Recipe, args: argparse.Namespace) -> list[str]:
    """The stages to bring up to date, by `--only`, `--from` and `--to`."""
    for name in (*args.force, *filter(None, (args.only, args.from_, args.to))):
        recipe.stage(name)
    names = [stage.name for stage in recipe.stages]
    chosen = _chosen(names, args)
    if args.retry_failed and "download" not in chosen:
        raise UserError(f"--retry-failed: it is about download, which is not among the stages to do: {listing(chosen)}")
    return chosen


def _chosen(names: list[str], args: argparse.Namespace) -> list[str]:
    if args.only:
        if args.from_ or args.to:
            raise UserError("--only cannot be combined with --from or --to")
        return [args.only]
    first = names.index(args.from_) if args.from_ else 0
    last = names.index(args.to) if args.to else len(names) - 1
    if first > last:
        raise UserError(f"--from {args.from_} comes after --to {args.to}")
    return names[first : last + 1]


def check_before(found: Sequence[Step], chosen: Sequence[str], *, allow_stale: bool) -> None:
    """Stages before the first chosen one must have manifests that fit the recipe."""
    for step in found:
        name = step.stage.name
        if name == chosen[0]:
            return
        if step.manifest is None:
            raise UserError(f"--only/--from {chosen[0]}: stage {name} before it has no manifest; run it first")
        if step.state != UP_TO_DATE and not allow_stale:
            raise UserError(
                f"--only/--from {chosen[0]}: the manifest of {name} is stale ({step.why}); "
                f"run from {name}, or use it as it is with --allow-stale"
            )


def bring_up_to_date(recipe: Recipe, store: Store, name: str, args: argparse.Namespace, display: Display) -> None:
    """Run one stage if it is not up to date, is forced, or has failures to retry.

    Raises:
        UnitError: a unit failed, or the sums do not hold; everything else is committed.
    """
    again = name in args.force
    force = [name] if again else []  # others that were forced have been run by now
    steps = plan.steps(recipe, store, force=force, allow_stale=args.allow_stale)
    step = next(step for step in steps if step.stage.name == name)
    if step.state != UP_TO_DATE:
        generation = next_generation(step) if again else 0
        run_stage(recipe, store, step, generation=generation, adopt=not again, display=display)
    elif not (args.retry_failed and name == "download"):
        say(f"{name}: up to date, {step.why}")
    if args.retry_failed and name == "download":
        step = next(step for step in plan.steps(recipe, store) if step.stage.name == name)
        step.stage.config = replace(step.stage.config, retry_failed=True)
        run_stage(recipe, store, step, generation=next_generation(step), adopt=True, display=display)
        step.stage.config = replace(step.stage.config, retry_failed=False)


def next_generation(step: Step) -> int:
    """Redoing a stage under the fingerprint it has: one more than what its manifest says."""
    done = step.manifest
    return done.generation + 1 if done and done.fingerprint == step.fingerprint else 1


def run_stage(recipe: Recipe, store: Store, step: Step, *, generation: int, adopt: bool, display: Display) -> Manifest:
    """Do every phase of a stage and write its manifest."""
    from curation import execute
    from curation.finish import finish

    stage = step.stage
    settings = replace(plan.stage_run(recipe, store, step, generation=generation), adopt=adopt)
    say(f"{stage.name}: {step.state} ({step.why})")
    began, rows, phases = time.monotonic(), 0, stage.phases()
    try:
        for phase in phases:
            done = execute.run_phase(settings, phase, display)
            rows = max(rows, done.rows)
        config: dict[str, Any] = redact_tree(as_dict(stage.config))
        seconds = time.monotonic() - began
        written = finish(
            settings, stage, phases, config, step.inputs, seconds=seconds, rows_done=rows, device=execute.device()
        )
    except UnitError as error:
        raise UnitError(f"stage {stage.name}: {error}", detail=error.detail) from error
    say(f"{stage.name}: {written.rows_in:,} rows in, {written.kept:,} kept, {written.seconds:.1f} s")
    return written


def say(text: str) -> None:
    """One line for the user."""
    print(text, file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m curation.run",
        description="Run a recipe, from metadata to shards: what is up to date stays, what was interrupted resumes.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("recipe", help="a YAML file, or the name of a shipped recipe")
    made.add_argument(
        "--root", required=True, metavar="DIR", help="where everything is written: a folder or an fsspec URL"
    )
    made.add_argument("--only", metavar="S", help="run this stage alone, from the manifest before it")
    made.add_argument("--from", dest="from_", metavar="S", help="run this stage and those after it")
    made.add_argument("--to", metavar="S", help="stop after this stage")
    made.add_argument(
        "--force", metavar="S", action="append", default=[], help="run this stage again although up to date"
    )
    made.add_argument(
        "--set",
        metavar="a.b.c=value",
        action="append",
        default=[],
        help="override one value of the recipe (repeatable)",
    )
    made.add_argument("--plan", action="store_true", help="say what would be done and why; run nothing")
    made.add_argument("--retry-failed", action="store_true", help="fetch again the rows whose failure was transient")
    made.add_argument(
        "--allow-stale", action="store_true", help="with --only/--from: use manifests that do not fit the recipe"
    )
    made.add_argument("--debug", action="store_true", help="show tracebacks and Ray's own log lines")
    return made


if __name__ == "__main__":
    code = main()
    gc.freeze()  # Python would look for cycles among all modules before it ends: a quarter of a second
    raise SystemExit(code)
