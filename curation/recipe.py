"""A recipe: what a user writes, checked whole before anything runs."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from curation import redact
from curation.options import as_dict, build
from curation.paths import source_files, source_trees
from stages import sources as source_descriptors
from stages.base import Stage
from stages.errors import UserError, did_you_mean, listing
from stages.schema import COMMON, extend
from stages.sources import Source
from stages.storage import Store, protocol

STAGES = {
    "keywords": "stages.keywords:KeywordsStage",
    "missed": "stages.missed:MissedStage",
    "ingest": "stages.ingest:IngestStage",
    "download": "stages.download:DownloadStage",
    "dedup": "stages.dedup:DedupStage",
    "outliers": "stages.outliers:OutliersStage",
    "captions": "stages.captions:CaptionsStage",
    "shards": "stages.shards:ShardsStage",
}
KEYS = ("name", "subset", "seed", "blocklist", "storage_options", "sources", "stages")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A recipe that can run: sources resolved to files, stages configured and in an order that fits."""

    name: str
    subset: str
    seed: int
    blocklist: tuple[str, ...]
    storage_options: Mapping[str, Any]
    sources: tuple[Source, ...]
    stages: tuple[Stage, ...]
    written: Mapping[str, Any]
    """As given, overrides applied: still with its secrets."""

    def effective(self) -> dict[str, Any]:
        """What is saved as `recipe.yaml`: every option with its value, secrets removed."""
        whole = dict(self.written) | {
            "name": self.name,
            "subset": self.subset,
            "seed": self.seed,
            "blocklist": list(self.blocklist),
            "stages": {stage.name: _shown(stage) for stage in self.stages},
        }
        return dict(redact.redact_tree({key: whole[key] for key in KEYS if key in whole}))

    def stage(self, name: str) -> Stage:
        """The stage called `name`.

        Raises:
            UserError: the recipe has none.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        names = [stage.name for stage in self.stages]
        raise UserError(f"stage {name!r} is not in the recipe{did_you_mean(name, names)}; it has: {listing(names)}")


def _shown(stage: Stage) -> dict[str, Any]:
    """A stage's options as a user would write them: not those that come from elsewhere."""
    return {name: value for name, value in as_dict(stage.config).items() if name not in ("blocklist", "retry_failed")}


def load(path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override, check and resolve a recipe.

    Raises:
        UserError: anything in it is wrong; the sentence names the key, its value and what is accepted.
    """
    whole = _read(path)
    for override in overrides:
        _override(whole, override)
    try:
        whole = _expand_variables(whole, "recipe")
    except RecursionError:
        raise UserError(f"recipe {path!r} holds an alias of itself; a tree of values is wanted") from None
    for key in whole:
        if key not in KEYS:
            raise UserError(f"{key}: unknown key{did_you_mean(key, KEYS)}; a recipe has: {listing(KEYS)}")
    storage_options = _mapping(whole.get("storage_options"), "storage_options")
    redact.learn({"storage_options": storage_options, "sources": whole.get("sources")})
    name = _identifier(whole.get("name", Path(path).stem), "name")
    blocklist = _blocklist(whole.get("blocklist", []), storage_options)
    sources = _sources(whole.get("sources"), storage_options)
    return Recipe(
        name=name,
        subset=_identifier(whole.get("subset", name), "subset"),
        seed=_seed(whole.get("seed", 2023)),
        blocklist=blocklist,
        storage_options=storage_options,
        sources=sources,
        stages=_stages(whole.get("stages"), sources, blocklist),
        written=whole,
    )


def root_store(root: str, recipe: Recipe | None = None) -> Store:
    """The run's folder; local paths are made absolute, since workers stand elsewhere.

    Raises:
        UserError: it names no folder, or one below a file.
    """
    if not root.rpartition("://")[2].strip("/") and not root.startswith("/"):
        raise UserError(f"--root {root!r}: a folder or an fsspec URL is wanted")
    options = _options_for(root, recipe.storage_options) if recipe else {}
    if protocol(root) == "file":
        root = os.path.abspath(os.path.expanduser(root.removeprefix("file://")))
        for place in (Path(root), *Path(root).parents):
            if place.is_file():
                raise UserError(f"--root {root!r}: a folder is wanted, and {str(place)!r} is a file")
    store = Store(root, options, _of_sources(recipe) if recipe else {})
    _ = store.fs  # an unknown protocol is told now
    return store


def _of_sources(recipe: Recipe) -> dict[str, Mapping[str, Any]]:
    """Options that reach the sources' files, by protocol: images may stay where a source has them."""
    return {
        protocol(files[0].url): source.storage_options
        for source in recipe.sources
        for files in source.files.values()
        if files and source.storage_options
    }


class _Loader(yaml.SafeLoader):
    """Plain values only, and no key twice, of which YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Raise `YAMLError` naming a key that is there twice."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        problem=f"{key.value!r} is there twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _read(path: str) -> dict[str, Any]:
    shipped = Path(__file__).parent.parent / "manifests" / "recipes"
    file = Path(path)
    if not file.exists() and (shipped / f"{path}.yaml").exists():
        file = shipped / f"{path}.yaml"
    try:
        whole = yaml.load(file.read_text(encoding="utf-8"), _Loader)  # noqa: S506 (a SafeLoader)
    except FileNotFoundError as error:
        names = sorted(found.stem for found in shipped.glob("*.yaml"))
        raise UserError(f"recipe {path!r} does not exist; shipped recipes: {listing(names)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {path!r} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        raise UserError(f"recipe {path!r} is not YAML{line}: {getattr(error, 'problem', error)}") from error
    if not isinstance(whole, dict):
        raise UserError(f"recipe {path!r} holds {type(whole).__name__}, a mapping with {listing(KEYS)} is wanted")
    return whole


def _override(whole: dict[str, Any], override: str) -> None:
    """Apply `a.b.c=value`; a source is addressed by its name or its number."""
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise UserError(f"--set {override}: a.b.c=value is wanted")
    *parents, last = dotted.split(".")
    place: Any = whole
    for part in parents:
        if isinstance(place, dict) and place.get(part) is None:
            place[part] = {}
        place = _item(place, part, override)
    if isinstance(place, list):
        raise UserError(f"--set {override}: {'.'.join(parents)} is a list; name an entry and its key")
    if not isinstance(place, dict):
        raise UserError(f"--set {override}: {'.'.join(parents)} holds {place!r}, which has no {last!r}")
    try:
        place[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--set {override}: {text!r} is not a YAML value") from error


def _item(place: Any, part: str, override: str) -> Any:
    if isinstance(place, list):
        for index, entry in enumerate(place):
            if part == str(index) or (isinstance(entry, dict) and entry.get("name") == part):
                return entry
        names = [entry.get("name") for entry in place if isinstance(entry, dict)]
        raise UserError(f"--set {override}: no entry {part!r}{did_you_mean(part, names)}; there are: {listing(names)}")
    if isinstance(place, dict):
        return place[part]
    raise UserError(f"--set {override}: {place!r} has no {part!r}")


def _expand_variables(value: Any, where: str) -> Any:
    """`${NAME}` in a text becomes the environment's value, so that secrets need not stand in files."""
    if isinstance(value, dict):
        return {name: _expand_variables(item, f"{where}.{name}") for name, item in value.items()}
    if isinstance(value, list):
        return [_expand_variables(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    def lookup(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise UserError(f"{where}: environment variable {match[1]} is not set")
        return os.environ[match[1]]

    return _VARIABLE.sub(lookup, value)


def _sources(entries: Any, storage_options: Mapping[str, Any]) -> tuple[Source, ...]:
    if not isinstance(entries, list) or not entries:
        raise UserError(f"sources: a list of sources is wanted, found {entries!r}")
    found: list[Source] = []
    for index, entry in enumerate(entries):
        where = f"sources[{index}]"
        if not isinstance(entry, dict) or "name" not in entry or "path" not in entry:
            raise UserError(f"{where}: a mapping with name and path is wanted, found {redact.redact(str(entry))}")
        _identifier(entry["name"], f"{where}.name")
        if any(source.name == entry["name"] for source in found):
            raise UserError(f"{where}.name: {entry['name']!r} is there twice; names must differ")
        found.append(_source(entry, f"sources.{entry['name']}", storage_options))
    return tuple(found)


def _source(entry: Mapping[str, Any], where: str, shared: Mapping[str, Any]) -> Source:
    own = _mapping(entry.get("storage_options"), f"{where}.storage_options")
    path = entry["path"]
    tree = (
        source_descriptors.named_files(source_descriptors.merge(entry))[0][0]
        if source_descriptors.is_tree(entry)
        else None
    )
    roles = path if isinstance(path, dict) else {tree or "data": path}
    if not roles:
        raise UserError(f"{where}.path: a path, a glob, a list or a mapping of named files is wanted, found {path!r}")
    first = next((item for item in roles.values() if isinstance(item, str)), "")
    options = {**_options_for(first, shared), **own}
    files = {
        role: (source_trees if role == tree else source_files)(item, f"{where}.path", options)
        for role, item in roles.items()
    }
    lists = [
        tuple(source_files(entry[key], f"{where}.{key}", options)) if entry.get(key) else ()
        for key in ("only", "except")
    ]
    rest = {key: value for key, value in entry.items() if key not in ("path", "only", "except", "storage_options")}
    return source_descriptors.resolve(rest, files, lists[0], lists[1], options)


def _options_for(path: str, shared: Mapping[str, Any]) -> Mapping[str, Any]:
    """Options by protocol (`{s3: {...}}`), or one flat mapping for every remote path."""
    kind = protocol(path)
    if kind == "file":
        return {}
    options = shared.get(kind, shared)
    return options if isinstance(options, Mapping) else {}


def _stages(entries: Any, sources: tuple[Source, ...], blocklist: tuple[str, ...]) -> tuple[Stage, ...]:
    if not isinstance(entries, dict) or not entries:
        raise UserError(f"stages: a mapping of stages is wanted, found {entries!r}; stages: {listing(STAGES)}")
    found: list[Stage] = []
    for name, options in entries.items():
        if name not in STAGES:
            raise UserError(f"stages.{name}: unknown stage{did_you_mean(name, STAGES)}; stages: {listing(STAGES)}")
        module, _, cls = STAGES[name].partition(":")
        stage_class = getattr(importlib.import_module(module), cls)
        config = build(stage_class.config_class, options, f"stages.{name}")
        if blocklist and any(field.name == "blocklist" for field in fields(config)):
            config = replace(config, blocklist=type(config.blocklist)(blocklist))
        found.append(stage_class(config, sources))
    _check_order(found)
    for stage in found:
        stage.check()
    return tuple(found)


def _check_order(stages: Sequence[Stage]) -> None:
    """The first stage reads the sources, no other does, and each finds the columns it needs."""
    columns = COMMON
    for index, stage in enumerate(stages):
        if stage.reads_sources != (index == 0):
            readers = [name for name in STAGES if name in ("keywords", "ingest")]
            if index == 0:
                raise UserError(
                    f"stages: {stage.name} comes first, but it reads no sources; begin with {listing(readers)}"
                )
            raise UserError(
                f"stages.{stage.name}: it reads the sources, so it must come first, not after {stages[0].name}"
            )
        lacking = sorted(stage.requires - set(columns.names))
        if lacking:
            raise UserError(
                f"stages.{stage.name}: it needs the column {lacking[0]!r}, which no stage before it adds; "
                f"before it: {listing(before.name for before in stages[:index]) or 'none'}"
            )
        columns = extend(columns, stage.adds)


def schema_before(stages: Sequence[Stage], name: str) -> pa.Schema:
    """The columns a stage finds, from what the stages before it add."""
    columns = COMMON
    for stage in stages:
        if stage.name == name:
            break
        columns = extend(columns, stage.adds)
    return columns


def _identifier(value: Any, where: str) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise UserError(f"{where}: a name of letters, digits, '_', '-' and '.' is wanted, found {value!r}")
    return value


def _seed(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise UserError(f"seed: a whole number from 0 on is wanted, found {value!r}")
    return value


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{where}: a mapping is wanted, found {type(value).__name__}")
    return value


def _blocklist(value: Any, storage_options: Mapping[str, Any]) -> tuple[str, ...]:
    """The list files that a recipe's `blocklist` names; remote ones as written, since that holds their access."""
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UserError(f"blocklist: a list of paths is wanted, found {value!r}")
    found: list[str] = []
    for entry in value:
        files = source_files(entry, "blocklist", _options_for(entry, storage_options))
        found += [file.url for file in files] if protocol(entry) == "file" else [entry]
    return tuple(dict.fromkeys(found))
