from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from trainer.data.captions import CaptionOptions, choose, restated
from trainer.data.order import generator
from trainer.errors import UserError

PARTS: list[dict[str, Any]] = [
    {"text": "A harbour.", "origin": "generated", "fact": None, "orientation_dependent": False},
    {
        "text": "The pier lies in the upper left.",
        "origin": "metadata",
        "fact": "position",
        "orientation_dependent": True,
    },
    {"text": "The sensor resolves 0.5 m.", "origin": "metadata", "fact": "resolution", "orientation_dependent": False},
]
CAPTION = " ".join(part["text"] for part in PARTS)
PASSPORT: dict[str, Any] = {
    "caption_parts": PARTS,
    "top_caption": "a harbour",
    "rotation_invariant_caption": "boats",
    "meta_caption": "port in Italy, 2016",
    "captions": [
        {"text": "harbour photo", "source": "laion2b", "origin": "alt_text"},
        {"text": "port", "source": "coyo", "origin": "alt_text"},
        {"text": "a harbour", "source": "fmow", "origin": "generated"},
    ],
    "pixel_x_m": 0.4,
    "pixel_y_m": 0.6,
}


def drawn(options: CaptionOptions, passport: dict[str, Any] = PASSPORT, count: int = 2000) -> Counter[str]:
    return Counter(choose(CAPTION, passport, options, generator(number)).text for number in range(count))


def test_the_shards_text_is_the_default() -> None:
    assert set(drawn(CaptionOptions(), count=20)) == {CAPTION}
    assert choose("x", {}, CaptionOptions(), generator(1)).text == "x"


def test_kinds_are_drawn_by_weight_and_texts_of_a_kind_alike() -> None:
    found = drawn(CaptionOptions(weights={"top_caption": 2, "alt_text": 1, "user": 5}))
    assert set(found) == {"a harbour", "harbour photo", "port"}
    assert abs(found["a harbour"] / 2000 - 2 / 3) < 0.04
    assert abs(found["port"] / 2000 - 1 / 6) < 0.03


def test_a_sample_without_any_of_the_kinds_keeps_its_text() -> None:
    options = CaptionOptions(weights={"top_caption": 1})
    assert choose("x", {}, options, generator(1)).text == "x"
    assert choose("x", {"top_caption": None, "captions": None}, options, generator(1)).text == "x"


def test_a_text_with_a_tagged_sentence_is_oriented() -> None:
    assert choose(CAPTION, PASSPORT, CaptionOptions(), generator(1)).oriented
    assert not choose(CAPTION, PASSPORT, CaptionOptions(weights={"top_caption": 1}), generator(1)).oriented
    left_out = choose(CAPTION, PASSPORT, CaptionOptions(oriented="leave_out"), generator(1))
    assert left_out.text == "A harbour. The sensor resolves 0.5 m."
    assert not left_out.oriented
    alone = {"caption_parts": [PARTS[1]]}
    only = choose(str(PARTS[1]["text"]), alone, CaptionOptions(oriented="leave_out"), generator(1))
    assert (only.text, only.oriented) == (PARTS[1]["text"], True)


def test_meta_captions_and_on_request_any_text_are_judged_by_their_words() -> None:
    said = {"meta_caption": "A stadium in the lower right.", "captions": []}
    assert choose("", said, CaptionOptions(weights={"meta_caption": 1}), generator(1)).oriented
    text = "the road on the left"
    assert not choose(text, {}, CaptionOptions(), generator(1)).oriented
    assert choose(text, {}, CaptionOptions(words=True), generator(1)).oriented
    assert not choose("the road", {}, CaptionOptions(words=True), generator(1)).oriented


def test_resolution_may_be_left_out_or_told_of_the_resized_image() -> None:
    assert "0.5 m" not in choose(CAPTION, PASSPORT, CaptionOptions(gsd="leave_out"), generator(1)).text
    assert restated(PASSPORT, 3.0) == "A pixel covers 1.5 m."
    assert restated({}, 3.0) == ""


def test_senseless_options_are_refused() -> None:
    for wrong, match in (
        ({"weights": {"capton": 1}}, "unknown kind 'capton'; accepted: caption, top_caption"),
        ({"weights": {"caption": 0}}, "above 0 together"),
        ({"oriented": "no"}, "oriented is 'no'; accepted: upright, leave_out"),
        ({"gsd": "no"}, "gsd is 'no'"),
    ):
        with pytest.raises(UserError, match=match):
            CaptionOptions(**wrong)  # type: ignore[arg-type]
