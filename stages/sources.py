"""Sources of rows: their shipped descriptors, a recipe's entry over one, and the resolved source."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import resources
from typing import Any

import yaml

import manifests
from stages import where
from stages.errors import UserError, did_you_mean, listing


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """One input file as the recipe's paths named it; size and version tell whether it changed."""

    url: str
    size: int
    version: str
    """Modification time (ns) of a local file, ETag of an object."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A named source: its descriptor (`manifests/sources/NAME.yaml`) with the recipe's overrides, and its files."""

    name: str
    format: str
    files: Mapping[str, tuple[SourceFile, ...]]
    """By role: `data` for a plain path, else the descriptor's named files (`images`, `regions`…)."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Roles (`url`, `caption`, `licence`, `page`…) to the file's column names or positions."""
    licence: str | None = None
    """Licence of the metadata when no column gives one per row."""
    unsafe: tuple[Mapping[str, Any], ...] = ()
    """Conditions on the source's own columns that drop a row before any fetch."""
    where: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """What else the format's reader takes (header, quoting, encoding, language…)."""
    only: tuple[SourceFile, ...] = ()
    """Files of ids to keep."""
    except_: tuple[SourceFile, ...] = ()
    """Files of ids to leave out."""
    on_bad_file: str = "fail"
    storage_options: Mapping[str, Any] = field(default_factory=dict)
    """For fsspec; may hold secrets, so it is never part of a digest or of anything written."""

    def digest(self) -> str:
        """Identity of how the source is read (not of its files), without secrets."""
        described = asdict(self)
        for name in ("storage_options", "files", "only", "except_", "on_bad_file"):
            described.pop(name)
        described["lists"] = [[f.url, f.size, f.version] for f in (*self.only, *self.except_)]
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Format:
    """A way to read files that the project knows."""

    files: tuple[str, ...] = ("data",)
    """Named files that must be there; a plain `path:` stands for the only or the first one."""
    optional_files: tuple[str, ...] = ()
    options: frozenset[str] = frozenset()
    has_table: bool = True
    """Rows have columns that roles name: `columns.url` and a caption are needed."""
    stage: str = "keywords"
    """The stage that reads it."""
    is_tree: bool = False
    """Its first named file is a folder, which the stage itself walks."""


_TABLE = frozenset({"origin", "language"})
_IMAGES = frozenset({"bands", "stretch", "tile", "facts", "keep"})
FORMATS: dict[str, Format] = {
    "parquet": Format(options=_TABLE),
    "csv": Format(options=_TABLE | {"header", "names", "delimiter"}),
    "tsv": Format(options=_TABLE | {"header", "names"}),
    "jsonl": Format(options=_TABLE),
    "json": Format(options=_TABLE | {"items", "orient"}),
    "yfcc": Format(files=("metadata",), optional_files=("subset",), options=_TABLE),
    "visual_genome": Format(files=("images", "regions"), options=_TABLE),
    "folder": Format(
        files=("images",),
        optional_files=("table",),
        options=_IMAGES | {"labels"},
        has_table=False,
        stage="ingest",
        is_tree=True,
    ),
    "webdataset": Format(options=frozenset({"facts", "tile"}), has_table=False, stage="ingest"),
    "fmow": Format(files=("images",), options=_IMAGES, has_table=False, stage="ingest", is_tree=True),
    "bigearthnet": Format(
        files=("images",),
        optional_files=("metadata", "test", "snow", "cloud"),
        options=_IMAGES | {"classes", "baseline"},
        has_table=False,
        stage="ingest",
        is_tree=True,
    ),
}
"""Formats by name: metadata of images on the web, and images one already has."""

ROLES = ("url", "caption", "captions", "licence", "page", "language", "id", "labels")
"""What a column can be to the pipeline."""
ORIGINS = ("alt_text", "generated", "metadata", "label", "user")
_DESCRIPTOR_KEYS = frozenset({"format", "columns", "licence", "homepage", "unsafe", "where", "options"})
_ENTRY_KEYS = frozenset(
    {"name", "path", "format", "columns", "where", "only", "except", "on_bad_file", "licence", "options", "unsafe"}
)
_UNSAFE_KEYS = frozenset({"column", "over", "equals"})
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def descriptor_names() -> list[str]:
    """The sources that the project ships a descriptor for, sorted."""
    folder = resources.files(manifests) / "sources"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_descriptor(name: str) -> dict[str, Any] | None:
    """The shipped descriptor of a source, or None when there is none of that name."""
    if name not in descriptor_names():
        return None
    text = (resources.files(manifests) / "sources" / f"{name}.yaml").read_text(encoding="utf-8")
    descriptor: dict[str, Any] = yaml.safe_load(text)
    return descriptor


def named_files(descriptor: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(needed, optional) names that a `path:` mapping takes; a plain path means the first needed one.

    Raises:
        UserError: an unknown format.
    """
    spec = _format(descriptor, str(descriptor.get("name", "")))
    return spec.files, spec.optional_files


def is_tree(entry: Mapping[str, Any]) -> bool:
    """Whether the path of a recipe's entry (its first named file) is a folder that the stage itself walks."""
    merged = merge(entry)
    return isinstance(merged.get("format"), str) and merged["format"] in FORMATS and FORMATS[merged["format"]].is_tree


def check_stage(sources: Iterable[Source], stage: str) -> None:
    """Raise `UserError` for a source of a format that another stage reads."""
    for source in sources:
        reads = FORMATS[source.format].stage
        if reads != stage:
            accepted = listing(name for name, spec in FORMATS.items() if spec.stage == stage)
            raise UserError(
                f"source {source.name!r}: format {source.format} is read by the stage {reads}, not by {stage}, "
                f"whose formats are {accepted}"
            )


def resolve(
    entry: Mapping[str, Any],
    files: Mapping[str, tuple[SourceFile, ...]],
    only: tuple[SourceFile, ...] = (),
    except_: tuple[SourceFile, ...] = (),
    storage_options: Mapping[str, Any] | None = None,
) -> Source:
    """A recipe's source entry over its descriptor, checked; `files` are what its `path` matched, by name.

    Raises:
        UserError: one sentence naming the source, the key, what it held and what is accepted.
    """
    name = _checked_name(entry)
    where_in = f"source {name!r}"
    _check_keys(entry, _ENTRY_KEYS, where_in)
    merged = merge(entry)
    spec = _format(merged, name)
    _check_files(files, spec, where_in)
    _check_options(merged, spec, where_in)
    columns = merged.get("columns") or {}
    _check_columns(columns, spec, where_in)
    unsafe = tuple(merged.get("unsafe") or ())
    _check_unsafe(unsafe, where_in)
    if merged.get("where") is not None:
        where.parse(_text(merged, "where", where_in))
    if merged.get("licence") is not None:
        _text(merged, "licence", where_in)
    on_bad_file = merged.get("on_bad_file", "fail")
    if on_bad_file not in ("fail", "drop"):
        raise UserError(f"{where_in}: on_bad_file is {on_bad_file!r}; accepted are fail and drop")
    return Source(
        name=name,
        format=merged["format"],
        files=files,
        columns=columns,
        licence=merged.get("licence"),
        unsafe=unsafe,
        where=merged.get("where"),
        options=merged.get("options") or {},
        only=only,
        except_=except_,
        on_bad_file=on_bad_file,
        storage_options=storage_options or {},
    )


def merge(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The entry's fields over its descriptor's; `columns` and `options` are merged key by key.

    Rows must pass the descriptor's `where` and the entry's. An entry that names another `format` than its descriptor
    starts from nothing but its own fields.
    """
    base = load_descriptor(str(entry.get("name"))) or {}
    if "format" in entry and entry["format"] != base.get("format"):
        base = {}
    merged = {key: value for key, value in base.items() if key in _DESCRIPTOR_KEYS} | dict(entry)
    for key in ("columns", "options"):
        if isinstance(base.get(key), Mapping) and isinstance(entry.get(key), Mapping):
            merged[key] = _overlay(base[key], entry[key])
    if "where" in base and isinstance(entry.get("where"), str):
        where.parse(entry["where"])  # by itself, so that a parenthesis too many cannot reach out of its half
        merged["where"] = f"({base['where']}) and ({entry['where']})"
    return merged


def _overlay(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """`caption` and `captions` are two ways to say one thing: whichever the entry gives replaces both."""
    dropped = {"caption", "captions"} if {"caption", "captions"} & set(own) else set()
    return {key: value for key, value in base.items() if key not in dropped} | dict(own)


def _checked_name(entry: Mapping[str, Any]) -> str:
    name = entry.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UserError(f"sources: name is {name!r}; it needs letters, digits, '_', '-' and '.' only")
    return name


def _check_keys(given: Mapping[str, Any], accepted: Iterable[str], where_in: str) -> None:
    accepted = list(accepted)
    for key in given:
        if key not in accepted:
            raise UserError(
                f"{where_in}: unknown key {key!r}{did_you_mean(key, accepted)}; accepted are {listing(accepted)}"
            )


def _text(merged: Mapping[str, Any], key: str, where_in: str) -> str:
    if not isinstance(merged[key], str):
        raise UserError(f"{where_in}: {key} is {merged[key]!r}; a text is needed")
    return str(merged[key])


def _format(merged: Mapping[str, Any], name: str) -> Format:
    if merged.get("format") is None:
        shipped = descriptor_names()
        raise UserError(
            f"source {name!r} has no shipped descriptor{did_you_mean(name, shipped)}, so it needs format and columns; "
            f"shipped are {listing(shipped)}, formats are {listing(FORMATS)}"
        )
    if not isinstance(merged["format"], str) or merged["format"] not in FORMATS:
        raise UserError(
            f"source {name!r}: unknown format {merged['format']!r}{did_you_mean(merged['format'], FORMATS)}; "
            f"accepted are {listing(FORMATS)}"
        )
    return FORMATS[merged["format"]]


def _check_files(files: Mapping[str, Any], spec: Format, where_in: str) -> None:
    _check_keys(files, (*spec.files, *spec.optional_files), f"{where_in}: path")
    for role in spec.files:
        if role not in files:
            raise UserError(f"{where_in}: path lacks {role!r}; needed are {', '.join(spec.files)}")


def _check_options(merged: Mapping[str, Any], spec: Format, where_in: str) -> None:
    options = merged.get("options") or {}
    if not isinstance(options, Mapping):
        raise UserError(f"{where_in}: options is {options!r}; a mapping is needed")
    _check_keys(options, spec.options, f"{where_in}: options")
    names, language = options.get("names", []), options.get("language", [])
    if not _are_texts(names):
        raise UserError(f"{where_in}: options.names is {names!r}; a list of column names is needed")
    if not isinstance(language, str) and not _are_texts(language):
        raise UserError(f"{where_in}: options.language is {language!r}; a code like en or a list of them is needed")
    if options.get("origin", "alt_text") not in ORIGINS:
        raise UserError(f"{where_in}: options.origin is {options['origin']!r}; accepted are {', '.join(ORIGINS)}")
    if options.get("orient", "rows") not in ("rows", "columns"):
        raise UserError(f"{where_in}: options.orient is {options['orient']!r}; accepted are rows and columns")
    delimiter = options.get("delimiter", ",")
    if not isinstance(delimiter, str) or len(delimiter) != 1 or delimiter in '"\r\n':
        raise UserError(f"{where_in}: options.delimiter is {delimiter!r}; one character is needed")


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _check_columns(columns: Any, spec: Format, where_in: str) -> None:
    if not isinstance(columns, Mapping):
        raise UserError(f"{where_in}: columns is {columns!r}; a mapping of roles to column names is needed")
    _check_keys(columns, ROLES, f"{where_in}: columns")
    if not spec.has_table:
        return
    if not columns.get("url") and columns.get("url") != 0:
        raise UserError(f"{where_in}: columns.url is missing; it names the column of image URLs")
    if ("caption" in columns) == ("captions" in columns):
        raise UserError(f"{where_in}: columns needs either caption (one column) or captions (several)")
    for role, value in columns.items():
        if role == "captions":
            _check_captions(value, where_in)
        elif not _is_column(value):
            raise UserError(f"{where_in}: columns.{role} is {value!r}; a column's name or position is needed")


def _is_column(value: Any) -> bool:
    """A name, a position, or a list of names of which the first that holds something counts."""
    if isinstance(value, list):
        return bool(value) and all(isinstance(item, str) for item in value)
    return isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool) and value >= 0)


def _check_captions(value: Any, where_in: str) -> None:
    if not isinstance(value, list) or not value:
        raise UserError(f"{where_in}: columns.captions is {value!r}; a list of {{column, origin}} is needed")
    for item in value:
        if not isinstance(item, Mapping) or not _is_column(item.get("column")):
            raise UserError(f"{where_in}: columns.captions holds {item!r}; {{column, origin}} is needed")
        _check_keys(item, ("column", "origin"), f"{where_in}: columns.captions")
        if item.get("origin", "alt_text") not in ORIGINS:
            raise UserError(f"{where_in}: origin is {item['origin']!r}; accepted are {', '.join(ORIGINS)}")


def _check_unsafe(conditions: tuple[Any, ...], where_in: str) -> None:
    for item in conditions:
        if not isinstance(item, Mapping) or "column" not in item or len(item) != 2:
            raise UserError(
                f"{where_in}: unsafe holds {item!r}; {{column, over: number}} or {{column, equals: [values]}} is needed"
            )
        _check_keys(item, _UNSAFE_KEYS, f"{where_in}: unsafe")
        if not isinstance(item.get("over", 0.0), int | float) or not isinstance(item.get("equals", [0]), list):
            raise UserError(f"{where_in}: unsafe holds {item!r}; over takes a number, equals a list")
