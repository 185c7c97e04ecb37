"""Keyword packs: terms, the one regular expression that each means, and a pack's file.

A term's pattern means the same in Python's `re`, in RE2 (Arrow, DuckDB) and in Rust's regex (polars): it is built of
classes of literal characters, groups and anchors alone, without flags.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import yaml

import manifests
from stages.errors import UserError, did_you_mean, listing
from stages.storage import Store

SPACE = "[\\x09-\\x0d \u00a0\u2010-\u2015_-]+"
"""A run of white space, hyphens or underscores: what each space or hyphen of a term matches."""
BEFORE, AFTER = "(?:^|[^A-Za-z])", "(?:[^A-Za-z]|$)"
_TERM = re.compile("[A-Za-z0-9'’]+(?:[ -][A-Za-z0-9'’]+)*")
_TERM_KEYS = ("term", "end", "why", "precision", "read", "right")
_PACK_KEYS = ("name", "description", "terms", "exclude")


@dataclass(frozen=True)
class Term:
    """Words to look for, and whether letters may follow them."""

    text: str
    open_end: bool = True
    notes: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """`why`, `precision`, `read`, `right`: for people."""

    @property
    def pattern(self) -> str:
        """The term's regular expression."""
        return pattern(self.text, open_end=self.open_end)


@dataclass(frozen=True)
class Pack:
    """The terms that make a row a hit, and those that veto it."""

    name: str
    terms: tuple[Term, ...]
    exclude: tuple[Term, ...] = ()

    def digest(self) -> str:
        """Identity of what the pack matches, whatever its notes say."""
        parts = [[(term.text, term.open_end) for term in terms] for terms in (self.terms, self.exclude)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def pattern(text: str, *, open_end: bool = True) -> str:
    """The regular expression of a term: no letter (A–Z, a–z) before it, any case, any run of spaces or hyphens.

    `open_end` lets anything follow; otherwise no letter may.
    """
    body = "".join(SPACE if character in " -" else _either_case(character) for character in text)
    return BEFORE + body + ("" if open_end else AFTER)


def alternation(terms: tuple[Term, ...]) -> str:
    """One expression that hits where any of the terms does."""
    return "|".join(term.pattern for term in terms)


def _either_case(character: str) -> str:
    return f"[{character.upper()}{character.lower()}]" if character.isalpha() else character


def pack_names() -> list[str]:
    """The packs that ship with the project, sorted."""
    folder = resources.files(manifests) / "keywords"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def pack_path(name: str) -> str:
    """The file of a shipped pack, or the path itself.

    Raises:
        UserError: neither a shipped pack nor a YAML file's path.
    """
    if name in pack_names():
        return str(resources.files(manifests) / "keywords" / f"{name}.yaml")
    if not name.endswith((".yaml", ".yml")):
        hint = did_you_mean(name, pack_names())
        raise UserError(f"keywords.pack is {name!r}{hint}; accepted are {listing(pack_names())}, or a YAML file's path")
    return name if "://" in name else os.path.abspath(os.path.expanduser(name))


def load_pack(name: str) -> Pack:
    """A shipped pack by name, or one from a YAML file.

    Raises:
        UserError: one sentence on what is wrong with it.
    """
    path = pack_path(name)
    try:
        content = yaml.safe_load(Store(path).read(path))
    except FileNotFoundError as error:
        raise UserError(f"keywords.pack is {name!r}: there is no such file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"keyword pack {path}: no valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise UserError(f"keyword pack {path}: a mapping with terms is needed, not {type(content).__name__}")
    _check_keys(content, _PACK_KEYS, path)
    terms = _terms(content.get("terms"), "terms", path)
    if not terms:
        raise UserError(f"keyword pack {path}: terms is empty; at least one is needed")
    exclude = _terms(content.get("exclude") or [], "exclude", path)
    return Pack(name=str(content.get("name", name)), terms=terms, exclude=exclude)


def _terms(entries: Any, key: str, path: str) -> tuple[Term, ...]:
    if not isinstance(entries, list):
        raise UserError(f"keyword pack {path}: {key} is {entries!r}; a list is needed")
    terms = tuple(_term(entry, key, path) for entry in entries)
    seen: set[str] = set()
    for term in terms:
        if term.text.lower() in seen:
            raise UserError(f"keyword pack {path}: {key} lists {term.text!r} twice")
        seen.add(term.text.lower())
    return terms


def _term(entry: Any, key: str, path: str) -> Term:
    if isinstance(entry, str):
        entry = {"term": entry}
    if not isinstance(entry, dict):
        raise UserError(f"keyword pack {path}: {key} holds {entry!r}; a text or {{term, end}} is needed")
    _check_keys(entry, _TERM_KEYS, path)
    text, end = entry.get("term"), entry.get("end", "open")
    if not isinstance(text, str) or not _TERM.fullmatch(text):
        raise UserError(
            f"keyword pack {path}: the term {text!r} needs letters and digits (A-Z, a-z, 0-9) or apostrophes, "
            "with single spaces or hyphens between them"
        )
    if end not in ("open", "word"):
        raise UserError(f"keyword pack {path}: the end of {text!r} is {end!r}; accepted are open and word")
    return Term(text, end == "open", {name: entry[name] for name in _TERM_KEYS[2:] if name in entry})


def _check_keys(given: Mapping[str, Any], accepted: tuple[str, ...], path: str) -> None:
    for key in given:
        if key not in accepted:
            hint = did_you_mean(key, accepted)
            raise UserError(f"keyword pack {path}: unknown key {key!r}{hint}; accepted are {listing(accepted)}")
