"""Meta captions and composition: true statements in words, drawn by seed, as many as CLIP reads."""

from __future__ import annotations

import datetime as dt
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from stages.captioning import tokens
from stages.captioning.compose import Candidate, Choice, compose, select
from stages.captioning.facts import is_oriented, position, slots, with_article
from stages.captioning.meta import Part, Template, draw, family_of, load_templates
from stages.errors import UserError
from tests.stages.ingesting import by_url, ingest

WHERE = "stages.captions.templates"
SCENE: dict[str, Any] = {
    "labels": ["place_of_worship"],
    "country": "United States of America",
    "place": "Springfield",
    "season": "summer",
    "month": 1,
    "year": 2016,
    "acquired_at": dt.datetime(2016, 1, 5, 14, 5, tzinfo=dt.UTC),
    "longitude": -58.0,
    "latitude": -15.0,
    "utm_zone": "21L",
    "platform": "WorldView-3",
    "gsd_m": 0.468,
    "pixel_x_m": 0.346,
    "pixel_y_m": 0.511,
    "width": 977,
    "height": 663,
    "objects": [{"label": "place_of_worship", "x": 330, "y": 225, "width": 320, "height": 215}],
}


def test_slots_say_what_the_record_says() -> None:
    found = slots(SCENE)
    assert found["a_label"] == "a place of worship"
    assert found["country"] == "the United States of America"
    assert found["Country"].startswith("The United")
    assert (found["month"], found["season"], found["date"]) == ("January", "summer", "5 January 2016")
    assert (found["utc"], found["local"]) == ("14:05 UTC", "10:00")
    assert (found["gsd"], found["spacing"]) == ("0.47", "0.35 m by 0.51 m")
    assert found["extent"] == "340 m by 340 m"
    assert found["position"] == "centre"


def test_what_is_not_known_has_no_slot() -> None:
    assert slots({}) == {}
    assert "country" not in slots({"country": "offshore"})
    dated = slots({"acquired_at": dt.datetime(2017, 6, 1, tzinfo=dt.UTC), "longitude": 9.0})
    assert "utc" not in dated
    assert dated["date"] == "1 June 2017"
    many = slots({"labels": ["Pastures", "Mixed forest", "Water bodies"]})
    assert many["labels"] == "pastures, mixed forest and water bodies"
    assert "a_label" not in many
    assert (
        slots({"labels": ["Pastures", "Transitional woodland, shrub"]})["labels"]
        == "pastures; transitional woodland, shrub"
    )


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("airport", "an airport"),
        ("solar farm", "a solar farm"),
        ("arable land", "arable land"),
        ("beaches, dunes, sands", "beaches, dunes, sands"),
        ("office building", "an office building"),
        ("mixed forest", "mixed forest"),
        ("no damage", "no damage"),
        ("tower", "a tower"),
        ("place of worship", "a place of worship"),
        ("road bridge", "a road bridge"),
        ("border checkpoint", "a border checkpoint"),
        ("impoverished settlement", "an impoverished settlement"),
        ("university campus", "a university campus"),
    ],
)
def test_articles(name: str, wanted: str) -> None:
    assert with_article(name) == wanted


@pytest.mark.parametrize(
    ("box", "wanted"),
    [
        ((0, 0, 30, 30), "upper left"),
        ((0, 0, 60, 30), "upper left and upper middle"),
        ((35, 35, 5, 5), "centre"),
        ((28, 28, 4, 20), "middle left"),
        ((0, 60, 90, 30), "lower left, lower middle and lower right"),
        ((0, 0, 90, 90), None),
        ((200, 200, 5, 5), None),
    ],
)
def test_position_names_the_ninths_that_the_object_fills(box: tuple[int, ...], wanted: str | None) -> None:
    thing = dict(zip(("x", "y", "width", "height"), box, strict=True))
    assert position({"objects": [thing], "width": 90, "height": 90}) == wanted
    assert position({"objects": [thing, thing], "width": 90, "height": 90}) is None


def test_every_shipped_template_fills_and_there_are_enough() -> None:
    templates = load_templates(["fmow", "bigearthnet"], WHERE)
    found = slots(SCENE)
    for name, texts in templates.named.items():
        assert len({template.text for template in texts}) >= 50, name
        for template in texts:
            text = template.filled(found)
            assert "{" not in text
            assert text.endswith((".", "!", "?"))
            assert tokens.count(text) <= 77
    words = {len(template.text.split()) for template in templates.named["fmow"]}
    assert min(words) <= 4 < 20 <= max(words)


def test_only_usable_templates_are_drawn_and_all_of_them() -> None:
    templates = load_templates(["fmow"], WHERE)
    known = slots({"labels": ["airport"], "country": "Brazil"})
    drawn = {part.text for n in range(800) if (part := templates.meta("fmow", known, 1, f"key {n}"))}
    usable = [template for template in templates.named["fmow"] if template.needs <= known.keys()]
    assert drawn == {template.filled(known) for template in usable}
    assert templates.meta("fmow", known, 1, "key 5") == templates.meta("fmow", known, 1, "key 5")
    assert templates.meta("fmow", {}, 1, "key") is None


def test_facts_that_turning_falsifies_are_tagged() -> None:
    templates = load_templates([], WHERE)
    sentences = {part.fact: part for part in templates.sentences(slots(SCENE), 1, "key")}
    assert sentences["position"].orientation_dependent
    assert not any(part.orientation_dependent for fact, part in sentences.items() if fact != "position")
    assert "country" not in sentences
    assert "classes" not in sentences
    assert Template("The {label} is in the {position}.").is_oriented


def test_a_southern_january_is_summer_in_every_sentence() -> None:
    templates = load_templates(["fmow"], WHERE)
    found = slots(SCENE)
    texts = [template.filled(found).lower() for template in templates.named["fmow"] if "season" in template.needs]
    assert all("summer" in text and "winter" not in text for text in texts)


def test_facts_of_the_whole_acquisition_are_left_out_unless_asked_for_and_named_as_such() -> None:
    passed = {
        "cloud_cover": 12.0,
        "off_nadir": 21.9,
        "sun_elevation": 46.2,
        "target_azimuth": 31.2,
        "scan_direction": "x",
    }
    found = slots(SCENE | {"acquisition": passed})
    assert found["acquisition"] == (
        "an acquisition with 12 % of cloud cover, an off-nadir angle of 22° and the sun 46° high"
    )
    templates = load_templates(["fmow", "bigearthnet", "acquisition"], WHERE)
    by_default = [text for name, texts in templates.named.items() if name != "acquisition" for text in texts]
    assert not any("acquisition" in template.needs for template in by_default)
    assert not any("acquisition" in template.needs for texts in templates.facts.values() for template in texts)
    assert all("acquisition" in template.needs for template in templates.named["acquisition"])
    assert all(tokens.count(template.filled(found)) <= 77 for template in templates.named["acquisition"])
    assert "acquisition" not in slots(SCENE | {"acquisition": {"scan_direction": "forward", "target_azimuth": 3.0}})


def test_families_follow_the_source_unless_the_recipe_says_otherwise() -> None:
    assert family_of("fmow", {}) == "fmow"
    assert family_of("mine", {}) == "generic"
    assert family_of("facts", {}) == "generic"
    assert family_of("mine", {"mine": "bigearthnet"}) == "bigearthnet"


def test_an_unknown_slot_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("templates: ['seen by {pilot}']\n")
    with pytest.raises(UserError, match="unknown slot 'pilot'"):
        load_templates([str(tmp_path / "mine.yaml")], WHERE)


def test_budget_puts_the_generated_caption_first_and_counts_what_does_not_fit() -> None:
    facts = [Part(f"It shows fact number {n}.", "metadata", str(n)) for n in range(20)]
    found = compose(Part("a long pier", "generated"), Part("Meta.", "metadata"), facts, "budget", 40)
    assert found.text.startswith("a long pier. It shows fact number 0.")
    assert tokens.count(found.text) <= 40
    assert found.left_out == 21 - len(found.parts)
    long = Part("pier " * 90, "generated")
    assert compose(long, None, facts, "budget", 77).left_out == 20
    assert compose(None, Part("Meta.", "metadata"), facts, "budget", 77).text == "Meta."
    assert compose(None, None, [], "budget", 77).text == ""


def test_ranks_keep_ten_then_five_then_the_steadiest_near_the_best() -> None:
    made = [
        Candidate(f"text {n}", score=n / 20, rerank=-n / 20, rotation_mean=0.3, rotation_variance=0.1)
        for n in range(20)
    ]
    made[10].rotation_mean, made[10].rotation_variance = 0.1, 0.0  # steady, but about nothing
    made[12].rotation_variance = 0.01
    choice = Choice(keep=10, rekeep=5, pick="rotation_invariant", tolerance=0.05, seed=1)
    found = select(made, choice, "key")
    assert [each.text for each in made if each.reason is None] == [f"text {n}" for n in range(10, 15)]
    assert (found.top, found.rotation_invariant, found.used) == (made[10], made[12], made[12])


def test_a_random_pick_is_drawn_by_seed_and_key() -> None:
    used = []
    for n in range(60):
        made = [Candidate("a", 0.5, 0.5, 0.3, 0.2), Candidate("b", 0.4, 0.4, 0.3, 0.1)]
        choice = Choice(keep=2, rekeep=2, pick="random", tolerance=0.05, seed=1)
        picked = select(made, choice, f"key {n}")
        assert picked.used is not None
        used.append(picked.used.text)
    assert 15 < used.count("a") < 45
    assert draw(1, "pick", "key", 2) == draw(1, "pick", "key", 2)


def test_the_real_record_and_patches(real_data: Path, tmp_path: Path) -> None:
    """By hand: the fountain's box ends at 538 of 977 and 359 of 663 px, so it lies in the middle ninth; at 8.55° E
    10:32 UTC are 11:06 of mean solar time; 338 m and 339 m are 340 m in two digits.
    """
    folder = tmp_path / "train/fountain/fountain_514"
    folder.mkdir(parents=True)
    shutil.copy(real_data / "rs/fmow/fountain_514_1_rgb.json", folder)
    Image.new("RGB", (977, 663)).save(folder / "fountain_514_1_rgb.png")
    (tmp_path / "fmow").mkdir()
    [row] = ingest(tmp_path / "fmow", {"name": "fmow", "path": str(tmp_path / "train")})[0].to_pylist()
    found = slots(row)
    assert (found["a_label"], found["position"]) == ("a fountain", "centre")
    assert (found["place"], found["country"], found["platform"]) == ("Kloten", "Switzerland", "GeoEye-1")
    assert (found["date"], found["utc"], found["local"]) == ("2 April 2012", "10:32 UTC", "11:00")
    assert (found["gsd"], found["spacing"]) == ("0.47", "0.35 m by 0.51 m")
    assert found["extent"] == "340 m by 340 m"
    (tmp_path / "ben").mkdir()
    source = {"name": "bigearthnet", "path": str(real_data / "rs/bigearthnet")}
    rows = by_url(ingest(tmp_path / "ben", source)[0])
    tejo = slots(rows["S2A_MSIL2A_20171221T112501_56_35"])
    assert (tejo["country"], tejo["place"], tejo["season"]) == ("Portugal", "São Miguel de Rio Torto", "winter")
    assert tejo["labels"].startswith("complex cultivation patterns; land principally occupied by agriculture, with")
    assert (tejo["gsd"], tejo["extent"]) == ("10", "1.2 km by 1.2 km")


def test_tokens_are_those_of_clip() -> None:
    import open_clip

    text = "a satellite image of a place of worship near Cuiabá, 0.47 m"
    ids = open_clip.get_tokenizer("ViT-B-32")([text])[0]
    assert tokens.count(text) == int((ids != 0).sum())


@pytest.mark.parametrize(
    "text",
    [
        "an airport with a runway on the left side",
        "a lake in the top right corner",
        "a road runs from left to right",
        "houses on the right and fields on the left",
        "forest in the upper half of the image",
        "a river flows south past a town",
        "a factory to the north of the river",
        "the eastern part of the city",
        "a pool at the bottom of the picture",
        "a north-east facing slope in the west",
    ],
)
def test_texts_that_turning_falsifies(text: str) -> None:
    assert is_oriented(text)


@pytest.mark.parametrize(
    "text",
    [
        "a road with cars next to a building",
        "a top view of a parking lot",
        "houses on top of a hill",
        "a tower at the top of a hill",
        "a field that is left to grow",
        "right next to the airport",
        "a town in south korea",
        "a house in north carolina",
        "a satellite image from above",
    ],
)
def test_texts_that_no_turn_falsifies(text: str) -> None:
    assert not is_oriented(text)


@pytest.mark.parametrize(
    ("longitude", "moment", "wanted"),
    [
        (174.8, (2015, 12, 31, 22, 40), ("31 December 2015 (UTC)", "22:40 UTC", "10:30", "1 January 2016")),
        (-157.9, (2016, 1, 1, 20, 50), ("1 January 2016", "20:50 UTC", "10:30", "1 January 2016")),
        (-179.0, (2016, 3, 1, 0, 10), ("1 March 2016 (UTC)", "00:10 UTC", "12:00", "29 February 2016")),
        (9.0, (2016, 7, 1, 10, 0), ("1 July 2016", "10:00 UTC", "10:30", "1 July 2016")),
    ],
)
def test_local_time_comes_with_the_local_date(
    longitude: float, moment: tuple[int, int, int, int, int], wanted: tuple[str, ...]
) -> None:
    found = slots({"acquired_at": dt.datetime(*moment, tzinfo=dt.UTC), "longitude": longitude})
    assert tuple(found[name] for name in ("date", "utc", "local", "local_date")) == wanted
    templates = load_templates(["fmow", "bigearthnet"], WHERE)
    told = [template for texts in templates.named.values() for template in texts if "local" in template.needs]
    assert told
    assert not any({"date", "utc"} & template.needs for template in told), "local time beside a date of elsewhere"
