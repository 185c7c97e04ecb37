"""Meta captions: templates filled with facts, one drawn by a seeded hash among those whose slots are all known."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import yaml

from stages.captioning.facts import ORIENTED
from stages.errors import UserError, listing
from stages.vision import shipped_or_path

SLOTS = frozenset(
    [
        *("label", "a_label", "labels", "country", "place", "utm_zone", "platform", "season", "month", "year", "date"),
        *("utc", "local", "local_date", "gsd", "spacing", "extent", "position", "acquisition"),
    ]
)
GENERIC = "generic"
_SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Template:
    """One text with slots."""

    text: str
    fact: str = ""
    """What a sentence of `facts.yaml` tells."""

    @cached_property
    def needs(self) -> frozenset[str]:
        """The slots it has, in lower case."""
        return frozenset(name.lower() for name in _SLOT.findall(self.text))

    @property
    def is_oriented(self) -> bool:
        """Whether turning or mirroring the image would make it false."""
        return bool(self.needs & ORIENTED)

    def filled(self, slots: Mapping[str, str]) -> str:
        """The text for a record that has all its slots."""
        return _SLOT.sub(lambda match: slots[match[1]], self.text)


@dataclass(frozen=True)
class Part:
    """A piece of a final caption, and where it comes from."""

    text: str
    origin: str
    """As in `captions`: `generated`, `metadata`, `user`…"""
    fact: str | None = None
    orientation_dependent: bool = False


@dataclass(frozen=True)
class Templates:
    """What the recipe's sources draw from."""

    named: Mapping[str, Sequence[Template]]
    """By the name of the YAML file; `generic` is everybody's other choice."""
    facts: Mapping[str, Sequence[Template]]
    """Sentences of each fact, the most telling fact first."""

    def meta(self, family: str, slots: Mapping[str, str], seed: int, key: str) -> Part | None:
        """One whole meta caption; None when the record fills no template."""
        usable = [template for template in self.named[family] if template.needs <= slots.keys()]
        usable = usable or [template for template in self.named[GENERIC] if template.needs <= slots.keys()]
        if not usable:
            return None
        chosen = usable[draw(seed, "meta", key, len(usable))]
        return Part(chosen.filled(slots), "metadata", "template", chosen.is_oriented)

    def sentences(self, slots: Mapping[str, str], seed: int, key: str) -> list[Part]:
        """One sentence for each fact that the record has; a country already told with the place is left out."""
        found: list[Part] = []
        for fact, texts in self.facts.items():
            usable = [template for template in texts if template.needs <= slots.keys()]
            told = {part.fact for part in found}
            if not usable or (fact == "country" and "place" in told) or (fact == "classes" and "class" in told):
                continue
            chosen = usable[draw(seed, fact, key, len(usable))]
            found.append(Part(chosen.filled(slots), "metadata", fact, chosen.is_oriented))
        return found


def draw(seed: int, purpose: str, key: str, choices: int) -> int:
    """A number below `choices` that depends on the seed, the purpose and the sample alone."""
    digest = hashlib.blake2b(f"{seed}\0{purpose}\0{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % choices


def template_file(name: str) -> Path:
    """The file of a shipped set of templates, or the path itself."""
    return shipped_or_path("templates", name)


def family_of(source: str, chosen: Mapping[str, str]) -> str:
    """The set of templates of a source: as the recipe says, else the shipped one of its name, else the generic one."""
    if source in chosen:
        return chosen[source]
    return source if _is_shipped(source) else GENERIC


@cache
def _is_shipped(name: str) -> bool:
    return name != "facts" and "/" not in name and template_file(name).is_file()


def load_templates(families: Sequence[str], where: str) -> Templates:
    """The named sets, the generic one and the facts.

    Raises:
        UserError: a file cannot be read, or a text has an unknown slot.
    """
    named = {name: _texts(name, where) for name in sorted({*families, GENERIC})}
    facts = _read(template_file("facts"), "facts", where)
    sentences = {entry["name"]: [Template(text, entry["name"]) for text in entry["texts"]] for entry in facts}
    for template in (each for texts in [*named.values(), *sentences.values()] for each in texts):
        unknown = sorted(template.needs - SLOTS)
        if unknown:
            raise UserError(
                f"{where}: the template {template.text!r} has an unknown slot {unknown[0]!r}; accepted: "
                f"{listing(sorted(SLOTS))}"
            )
    return Templates(named, sentences)


def _texts(name: str, where: str) -> list[Template]:
    texts = _read(template_file(name), "templates", where)
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where}: {name!r} holds templates that are no texts")
    return [Template(text) for text in texts]


def _read(path: Path, key: str, where: str) -> list[Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{where}: {str(path)!r} cannot be read ({error})") from error
    if not isinstance(found, dict) or not isinstance(found.get(key), list) or not found[key]:
        raise UserError(f"{where}: {path} holds no list named {key!r}")
    return list(found[key])
