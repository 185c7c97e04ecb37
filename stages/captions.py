"""Captions: candidates from an image-to-text model, gated by what is known, ranked, and composed with facts.

`plan` finds images without stored candidates and `generate` writes those; `locate` finds where each row's candidates
lie; `rank` and `rerank` score whole files of candidates; `compose` gates, picks and writes the rows (docs/captions.md).
Another gate, pick, template or order of parts reruns only the last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pyarrow as pa

from stages.base import DROPPED, KEPT, Ledger, Phase, Record, Result, Stage, Unit, Workspace, operational, semantic
from stages.captioning.candidates import Generate, PlanCandidates, row_groups, wanted, with_seed
from stages.captioning.compose import Candidate, Choice, Composed, Picked, compose, judge, select
from stages.captioning.facts import is_oriented, slots
from stages.captioning.gate import Gate, load_gate
from stages.captioning.generator import Captioner, Options, adapter_ref
from stages.captioning.meta import (
    GENERIC,
    Part,
    Templates,
    family_of,
    load_templates,
    template_file,
)
from stages.captioning.ranker import RankConfig, Ranker, RerankConfig
from stages.captioning.ranking import Locate, Rank, Rerank
from stages.captioning.tokens import CONTEXT, count
from stages.errors import UserError
from stages.memory import shrunk
from stages.models import ModelRef
from stages.schema import CAPTIONS, COMMON, conform, extend
from stages.scoring import kept_rows
from stages.vision import shipped_or_path

WHERE = "stages.captions"
NO_CAPTION_LEFT = "no_caption_left"


@dataclass(frozen=True, kw_only=True)
class CaptionsConfig:
    """Options of `stages.captions`."""

    model: str = semantic(help="a hub id, or a folder as transformers saves it: any image-to-text model")
    adapter: str | None = semantic(None, help="a folder as PEFT saves it")
    prompt: str | None = semantic(None, help="what the model is asked with; null: it just captions")
    candidates: int = semantic(20, help="captions drawn for each image")
    top_k: int = semantic(50, help="tokens to draw from at most; 0: all")
    top_p: float = semantic(0.95, help="the likeliest tokens that hold this much of the probability are drawn from")
    temperature: float = semantic(1.0, help="what logits are divided by")
    max_tokens: int = semantic(50, help="length of a candidate, at most")
    precision: Literal["auto", "fp32", "fp16", "bf16"] = semantic("auto", help="auto: fp16 on a GPU, else fp32")
    rank: RankConfig | None = semantic(None, help="the first ranking; null: candidates stay in their order")
    rerank: RerankConfig | None = semantic(None, help="the second ranking; null leaves it out")
    rotation_tolerance: float = semantic(0.02, help="how far below the best mean cosine the steadiest caption may lie")
    pick: Literal["top", "rotation_invariant", "random"] = semantic("random", help="random: of the two, as the paper")
    compose: Literal["budget", "paper"] = semantic("budget", help="what the final caption is made of")
    tokens: int = semantic(CONTEXT, help="CLIP tokens that compose: budget may fill")
    gate: str = semantic("rs", help="word lists shipped under this name, or a YAML file")
    templates: dict[str, str] = semantic({}, help="source: templates shipped under a name, or a YAML file")
    batch_size: int = operational(8, help="images a forward pass, each with all its candidates")
    device: Literal["auto", "cuda", "cpu"] = operational("auto", help="auto: a GPU where the cluster has one")
    threads: int = operational(1, help="CPU threads of each model")


class CaptionsStage(Stage):
    """Gives every image a caption, and says where each part of it comes from."""

    name: ClassVar[str] = "captions"
    version: ClassVar[int] = 2
    config_class: ClassVar[type] = CaptionsConfig
    reasons: ClassVar[frozenset[str]] = frozenset({NO_CAPTION_LEFT})
    requires: ClassVar[frozenset[str]] = frozenset({"key", "source", "caption", "sha256", "image"})
    adds: ClassVar[pa.Schema] = CAPTIONS
    keeps_results: ClassVar[bool] = True
    uses_seed: ClassVar[bool] = True

    def captioner(self) -> Captioner:
        """The image-to-text model."""
        config = self.config
        ref = ModelRef(library="transformers", where=f"{WHERE}.model", model=config.model).absolute()
        adapter = adapter_ref(f"{WHERE}.adapter", config.adapter)
        return Captioner(ref=ref, adapter=adapter, device=config.device, threads=config.threads)

    def options(self) -> Options:
        """How candidates are drawn, but for the seed."""
        names = ("candidates", "top_k", "top_p", "temperature", "max_tokens", "prompt", "precision")
        return Options(**{name: getattr(self.config, name) for name in names})

    def rankers(self) -> list[Ranker]:
        """The models that rank."""
        rotates = self.config.pick != "top"
        named = (("rank", self.config.rank, rotates), ("rerank", self.config.rerank, False))
        return [Ranker(name=name, config=config, rotates=turns) for name, config, turns in named if config]

    def phases(self) -> list[Phase]:
        """Plan, generate, locate, rank, rerank, compose."""
        shared = (self.captioner(), self.options(), self.config.batch_size)
        ranks: list[Phase] = [{"rank": Rank, "rerank": Rerank}[ranker.name](ranker) for ranker in self.rankers()]
        return [PlanCandidates(*shared), Generate(*shared), Locate(self.rankers()), *ranks, Compose(self.config)]

    def families(self) -> list[str]:
        """Sets of templates that the sources draw from."""
        names = [source.name for source in self.sources]
        return [*(family_of(name, self.config.templates) for name in names), *self.config.templates.values()]

    def named_files(self) -> list[str]:
        """Weights, configs, word lists and templates."""
        texts = [template_file(name) for name in sorted({*self.families(), GENERIC, "facts"})]
        lists = [shipped_or_path("gate", self.config.gate), *texts]
        models = [*self.captioner().files(), *(path for ranker in self.rankers() for path in ranker.ref.files())]
        return [*models, *map(str, lists)]

    def check(self) -> None:
        """The numbers, the models, the lists and the templates."""
        _check_numbers(self.config)
        self.captioner().check()
        for ranker in self.rankers():
            ranker.check()
        if self.config.pick == "rotation_invariant" and self.config.rank is None:
            raise UserError(f"{WHERE}.pick: 'rotation_invariant' needs {WHERE}.rank, the model that is shown the turns")
        load_gate(self.config.gate, f"{WHERE}.gate")
        load_templates(self.families(), f"{WHERE}.templates")

    def summary(self, records: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
        """What was generated anew, what became of the candidates of each source, and what did not fit into memory."""
        totals: dict[str, Counter[str]] = {}
        for record in records[Compose.name]:
            for source, counts in record.meta["sources"].items():
                totals.setdefault(source, Counter()).update(counts)
        tight = [
            shrunk(records.get(ranker.name, ()), ranker.config.batch_size, ranker.ref.where)
            for ranker in self.rankers()
        ]
        return {
            "generated": sum(record.meta["images"] for record in records[Generate.name]),
            "sources": {source: dict(sorted(counts.items())) for source, counts in sorted(totals.items())},
            "warnings": [sentence for sentence in tight if sentence],
        }

    def preview(self, ws: Workspace) -> tuple[int, int] | None:
        """Rows whose image has its candidates, and images to caption."""
        missing = wanted(ws, self.captioner(), with_seed(self.options(), ws)).missing.num_rows
        rows = sum(kept_rows(ws.read_table(file.path, columns=["status"])).num_rows for file in ws.input_files())
        return rows - missing, missing


def _check_numbers(config: CaptionsConfig) -> None:
    for name in ("candidates", "max_tokens", "batch_size", "threads"):
        if getattr(config, name) < 1:
            raise UserError(f"{WHERE}.{name} is {getattr(config, name)}: a whole number from 1 on is wanted")
    if config.top_k < 0:
        raise UserError(f"{WHERE}.top_k is {config.top_k}: a whole number from 0 on is wanted")
    if not 0 < config.top_p <= 1:
        raise UserError(f"{WHERE}.top_p is {config.top_p}: it must be above 0 and at most 1")
    if config.temperature <= 0:
        raise UserError(f"{WHERE}.temperature is {config.temperature}: it must be above 0")
    if config.rotation_tolerance < 0:
        raise UserError(f"{WHERE}.rotation_tolerance is {config.rotation_tolerance}: it must be 0 or more")
    if config.tokens < 8:
        raise UserError(f"{WHERE}.tokens is {config.tokens}: a whole number from 8 on is wanted")


@dataclass(frozen=True)
class _Wording:
    """What captions are made with, loaded once a task."""

    gate: Gate
    templates: Templates
    choice: Choice


class Compose(Phase):
    """Gates, picks and writes the rows of one group of parts."""

    name: ClassVar[str] = "compose"

    def __init__(self, config: CaptionsConfig) -> None:
        self.config = config

    def cut(self, ws: Workspace) -> list[Unit]:
        """Groups of input parts."""
        return [
            Unit(id=unit.id, spec={**unit.spec, "row_group": number}, rows=unit.rows)
            for number, unit in enumerate(row_groups(ws))
        ]

    def setup(self, ws: Workspace) -> _Wording:
        """Word lists, templates, and how the pick is made."""
        config = self.config
        choice = Choice(
            keep=config.rank.keep if config.rank else None,
            rekeep=config.rerank.keep if config.rerank else None,
            pick=config.pick,
            tolerance=config.rotation_tolerance,
            seed=ws.seed,
        )
        families = [*(family_of(name, config.templates) for name in ws.sources), *config.templates.values()]
        return _Wording(load_gate(config.gate, WHERE), load_templates(families, WHERE), choice)

    def work(self, unit: Unit, ws: Workspace, state: _Wording, prepared: pa.Table | None = None) -> Result:
        """Compose every kept row; rows without a caption are dropped."""
        table = pa.concat_tables([kept_rows(ws.read_table(path)) for path in unit.spec["files"]])
        schema = extend(ws.input_columns(), COMMON, CAPTIONS)
        candidates = Stored(ws).of_rows(unit.spec["row_group"])
        counts: dict[str, Counter[str]] = {}
        rows = table.to_pylist()
        for row, (found, image_class) in zip(rows, candidates or [([], None)] * len(rows), strict=True):
            self._compose(row, found, image_class, state, counts.setdefault(row["source"], Counter()))
        written = conform(pa.Table.from_pylist(rows, schema=schema), schema)
        ws.write_table("part", written)
        ledger = Ledger()
        ledger.add_table(written)
        return Result(ledger=ledger, meta={"sources": {source: dict(found) for source, found in counts.items()}})

    def _compose(
        self,
        row: dict[str, Any],
        candidates: list[Candidate],
        image_class: str | None,
        wording: _Wording,
        counts: Counter[str],
    ) -> None:
        """Fill the row's new columns, in place, and count."""
        config, choice = self.config, wording.choice
        judge(candidates, row, wording.gate, config.prompt)
        picked = select(candidates, choice, row["key"])
        known = slots(row)
        meta = wording.templates.meta(family_of(row["source"], config.templates), known, choice.seed, row["key"])
        facts = wording.templates.sentences(known, choice.seed, row["key"])
        first = _said(picked.used.text, "generated") if picked.used else _own(row, wording.gate)
        composed = compose(first, meta, facts, config.compose, config.tokens)
        row |= _columns(row, candidates, picked, meta, composed)
        row |= {"image_class": image_class, "caption_class": picked.used.text_class if picked.used else None}
        _count(counts, row, candidates, composed)


def _own(row: Mapping[str, Any], gate: Gate) -> Part | None:
    """The caption that the row came with, if it says nothing that the record does not confirm."""
    text = (row["caption"] or "").strip()
    if not text or gate.reason(text, row):
        return None
    origins = {entry["text"]: entry["origin"] for entry in row.get("captions") or []}
    return _said(text, origins.get(text, "user"))


def _said(text: str, origin: str) -> Part:
    """A whole caption as the part of another."""
    return Part(text, origin, orientation_dependent=is_oriented(text))


def _columns(
    row: Mapping[str, Any], candidates: Sequence[Candidate], picked: Picked, meta: Part | None, composed: Composed
) -> dict[str, Any]:
    """The row's new values."""
    text = composed.text
    generated = [each.text for each in (picked.top, picked.rotation_invariant) if each]
    made = [(caption, "generated") for caption in generated] + ([(meta.text, "metadata")] if meta else [])
    known = row.get("captions") or []
    added = [
        {"text": caption, "source": row["source"], "origin": origin}
        for caption, origin in dict.fromkeys(made)
        if caption not in {entry["text"] for entry in known}
    ]
    return {
        "caption": text or row["caption"],
        "status": KEPT if text else DROPPED,
        "reason": None if text else NO_CAPTION_LEFT,
        "candidates": [candidate.to_row() for candidate in candidates],
        "top_caption": picked.top.text if picked.top else None,
        "rotation_invariant_caption": picked.rotation_invariant.text if picked.rotation_invariant else None,
        "meta_caption": meta.text if meta else None,
        "caption_parts": [vars(part) for part in composed.parts],
        "caption_tokens": count(text) if text else None,
        "captions": [*known, *added],
    }


def _count(counts: Counter[str], row: Mapping[str, Any], candidates: Sequence[Candidate], composed: Composed) -> None:
    """What the manifest says of a source."""
    counts["images"] += 1
    counts["candidates"] += len(candidates)
    counts.update(f"reason {each.reason}" for each in candidates if each.reason)
    counts.update(f"origin {part.origin}" for part in composed.parts[:1])
    counts["meta_captions"] += row["meta_caption"] is not None
    counts["facts_left_out"] += composed.left_out
    counts["beyond_context"] += (row["caption_tokens"] or 0) > CONTEXT
    if row["image_class"] and row.get("labels"):
        counts["asked"] += 1
        counts["image_agrees"] += row["image_class"] in row["labels"]
        counts["caption_agrees"] += row["caption_class"] in row["labels"]


class Stored:
    """Candidates with their scores, read from the files where `locate` found them."""

    def __init__(self, ws: Workspace) -> None:
        self.ws = ws
        self.files = ws.phase_records(Locate.name)[0].meta["files"]
        self.ranked = {name: ws.phase_files(name, "scores") for name in (Rank.name, Rerank.name)}

    def of_rows(self, row_group: int) -> list[tuple[list[Candidate], str | None]]:
        """(candidates, the image's zero-shot class) of the rows of a group; empty when there are no files at all."""
        if not self.files:
            return []
        places = self.ws.read_table(
            self.ws.phase_files(Locate.name, "side")[0].path, row_groups=[row_group]
        ).to_pylist()
        needed = {place["file"] for place in places if place["file"] is not None}
        loaded = {number: self._load(number) for number in sorted(needed)}
        return [loaded[place["file"]](place["row"]) if place["file"] is not None else ([], None) for place in places]

    def _load(self, number: int) -> Any:
        texts = self.ws.read_table(self.files[number], columns=["texts"])["texts"].to_pylist()
        ranks = {
            name: self.ws.read_table(files[number].path).to_pylist() for name, files in self.ranked.items() if files
        }

        def of_row(row: int) -> tuple[list[Candidate], str | None]:
            rank = ranks[Rank.name][row] if Rank.name in ranks else {}
            rerank = ranks[Rerank.name][row] if Rerank.name in ranks else {}
            return _candidates(texts[row] or [], rank, rerank), rank.get("image_class")

        return of_row


def _candidates(texts: Sequence[str], rank: Mapping[str, Any], rerank: Mapping[str, Any]) -> list[Candidate]:
    none: list[None] = [None] * len(texts)
    columns = (
        rank.get("scores") or none,
        rerank.get("scores") or none,
        rank.get("rotation_mean") or none,
        rank.get("rotation_variance") or none,
        none,
        rank.get("text_classes") or none,
    )
    return [Candidate(text, *values) for text, *values in zip(texts, *columns, strict=True)]
