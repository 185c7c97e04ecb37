"""The gate: what published captions of overhead images got wrong, written anew, and what must pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import gate as gate_cases
from stages.captioning.gate import REASONS, Gate, load_gate, loops
from stages.errors import UserError
from stages.geo.countries import countries

RECORD: dict[str, Any] = {
    "labels": ["airport"],
    "country": "Brazil",
    "place": "Cuiabá",
    "season": "winter",
    "month": 7,
    "year": 2015,
    "gsd_m": 0.47,
    "platform": "WorldView-2",
    "sensor": None,
}
NOTHING: dict[str, Any] = {}
SENTINEL: dict[str, Any] = {
    "platform": "Sentinel-2A",
    "labels": ["Sea and ocean"],
    "country": "Portugal",
    "gsd_m": 10.0,
}


@pytest.fixture(scope="module")
def gate() -> Gate:
    return load_gate("rs", "stages.captions.gate")


@pytest.mark.parametrize(
    "text",
    [
        "an aerial view of an airport with two long runways",
        "several white airplanes parked next to a large building",
        "a satellite image of green fields and a winding river",
        "many buildings are around a square with some trees",
        "a star-shaped fort surrounded by water",
        "the road may be new and the march of houses goes on",
        "a bridge crosses the water in the middle of the town",
        "a nice view of orange roofs and a bath house",
        "200 meters of beach next to a road",
        "an american football field beside a running track",
        "white snow covers the mountains",
        "a spring flows into the lake",
        "Aerial View Of A Large Airport Terminal",
        "an overhead photo taken by a drone of a parking lot",
        "dense forest, a lake and bare land",
        "a baseball diamond from above",
        "a village of houses with red roofs, photographed from the sky",
        "an image taken from outer space of a river delta",
    ],
)
def test_descriptions_of_what_is_seen_pass(gate: Gate, text: str) -> None:
    assert gate.reason(text, NOTHING) is None


@pytest.mark.parametrize(
    "text",
    [
        "an airport in brazil",
        "a brazilian airport with a long runway",
        "an airport in south america",
        "aerial view of the airport of Cuiabá",
        "an airport in july 2015",
        "the airport in winter",
        "a worldview-2 image of an airport",
        "an airport seen by digitalglobe",
        "an airport at 0.5 m resolution",
    ],
)
def test_what_the_record_confirms_passes(gate: Gate, text: str) -> None:
    assert gate.reason(text, RECORD) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("an aerial view of the city of shanghai, china", "unsupported_place"),
        ("an airport in the united states", "unsupported_place"),
        ("a chinese city from above", "unsupported_place"),
        ("the airport of los angeles", "unsupported_place"),
        ("an african village with round huts", "unsupported_place"),
        ("a view of the Persian Gulf from above", "unsupported_place"),
        ("a runway near Springfield", "unsupported_place"),
        ("an aerial view of Lake Okanagan at noon", "unsupported_place"),
        ("the site lies at 12° 30' north", "unsupported_place"),
        ("a farm in texas", "unsupported_place"),
        ("satellite image of the town of anganji", "unsupported_place"),
        ("a close - up of brown tiles", "contradicts_viewpoint"),
        ("dark brown marble floor", "contradicts_viewpoint"),
        ("google earth image of an airport", "unsupported_source"),
        ("an airport, google maps", "unsupported_source"),
        ("photo by nasa of a coast", "unsupported_source"),
        ("landsat image of a delta", "unsupported_source"),
        ("a picture from the international space station of a bay", "unsupported_source"),
        ("airport runway - getty images", "unsupported_source"),
        ("an airport seen by quickbird", "unsupported_source"),
        ("a field in 1998", "unsupported_date"),
        ("an airport in december", "unsupported_date"),
        ("a park in the summer of 2015", "unsupported_date"),
        ("trees turning red in the fall", "unsupported_date"),
        ("a 19th century fort", "unsupported_date"),
        ("a ruin of the 1970s", "unsupported_date"),
        ("the airport in march", "unsupported_date"),
        ("aerial photo by john miller of a harbor", "unsupported_person"),
        ("a house of president walker", "unsupported_person"),
        ("image courtesy of the owner", "unsupported_person"),
        ("a compound where osama bin laden was found", "unsupported_person"),
        ("an airport at 30 m resolution", "unsupported_resolution"),
        ("1 meter per pixel image of an airport", "unsupported_resolution"),
        ("a 4k view of an airport", "unsupported_resolution"),
        ("the moon over a dark sea", "contradicts_viewpoint"),
        ("stars in the night sky above a beach", "contradicts_viewpoint"),
        ("a galaxy far away", "contradicts_viewpoint"),
        ("city streets at night", "contradicts_viewpoint"),
        ("stock photo of a green field", "contradicts_viewpoint"),
        ("a close up of a brown carpet", "contradicts_viewpoint"),
        ("light blue, a navy fabric", "contradicts_viewpoint"),
        ("a woman standing on a road", "contradicts_viewpoint"),
        ("a screenshot of a video game with a map", "contradicts_viewpoint"),
        ("a cruise ship in the water", "contradicts_label"),
        ("", "empty"),
        ("airport", "empty"),
        ("... 12 34", "empty"),
        ("a road and a road and a road and a road", "loop"),
        ("trees trees trees near a house", "loop"),
    ],
)
def test_what_the_record_does_not_confirm_is_dropped(gate: Gate, text: str, reason: str) -> None:
    assert gate.reason(text, RECORD) == reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a sentinel-2 image of the sea", None),
        ("an esa image of the sea", None),
        ("a nasa image of the sea", "unsupported_source"),
        ("waves of the sea in portugal", None),
        ("waves of the sea in spain", "unsupported_place"),
        ("a european coast with waves", None),
        ("10 m resolution image of the sea", None),
        ("a desert with a highway", "contradicts_label"),
        ("tall buildings of a city by the sea", "contradicts_label"),
        ("the sea in 2017", "unsupported_date"),
    ],
)
def test_another_record_confirms_other_things(gate: Gate, text: str, reason: str | None) -> None:
    assert gate.reason(text, SENTINEL) == reason


def test_an_offshore_record_confirms_no_country(gate: Gate) -> None:
    assert gate.reason("a wind park off denmark", {"country": "offshore"}) == "unsupported_place"


def test_the_prompt_said_again_is_an_echo(gate: Gate) -> None:
    assert gate.reason("A satellite image of.", NOTHING, "a satellite image of") == "echo"
    assert gate.reason("a satellite image of roads", NOTHING, "a satellite image of") is None


def _loops(text: str) -> bool:
    return loops(text.split())


def test_loops_are_repeats_of_up_to_four_words_or_few_words_over_and_over() -> None:
    assert _loops("red roof red roof red roof")
    assert _loops("a b c d a b c d a b c d")
    assert not _loops("a road beside a river beside a town")
    assert _loops("the tree and the road and the tree or the road and the tree")


def test_real_captions_of_people_pass_and_map_services_do_not(gate: Gate, real_data: Path) -> None:
    import pyarrow.parquet as pq

    rows = pq.read_table(real_data / "text/captions.parquet").to_pylist()
    human = [row["caption"] for row in rows if row["source"] in ("rsicd", "ucm_captions")][:3000]
    assert sum(gate.reason(text, NOTHING) is not None for text in human) <= len(human) // 500
    google = [row["caption"] for row in rows if row["source"] == "rs3_dump" and "google" in row["caption"].lower()]
    assert len(google) > 50
    assert all(gate.reason(text, NOTHING) for text in google)


def test_every_reason_is_documented() -> None:
    page = Path("docs/captions.md").read_text(encoding="utf-8")
    assert all(f"`{reason}`" in page for reason in REASONS)


def test_a_list_that_lacks_a_part_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("countries: {}\n")
    with pytest.raises(UserError, match="has no 'continents'"):
        load_gate(str(tmp_path / "mine.yaml"), "stages.captions.gate")


@pytest.mark.parametrize("group", gate_cases.groups(), ids=lambda group: group["name"])
def test_kinds_of_error_of_published_captions_are_stopped_and_true_ones_pass(gate: Gate, group: dict[str, Any]) -> None:
    assert len(group["texts"]) > 10
    assert gate_cases.failures(gate, group) == []


def test_every_country_is_known_and_its_own_record_confirms_it(gate: Gate) -> None:
    for country in countries():
        text = f"a town in {country.name.lower()}"
        assert gate.reason(text, NOTHING) == "unsupported_place", text
        assert gate.reason(text, {"country": country.name}) is None, text


@pytest.mark.parametrize(
    ("text", "record", "reason"),
    [
        ("a street in zlatoust", {}, "unsupported_place"),
        ("a street in são paulo", {"country": "Brazil", "place": "Cuiabá"}, "unsupported_place"),
        ("a street in sao paulo", {"country": "Brazil", "place": "São Paulo"}, None),
        ("the port of new york", {"country": "United States of America", "place": "New York City"}, None),
        ("the port of york", {"country": "United Kingdom", "place": "Hull"}, "unsupported_place"),
        ("a nice orange roof in a mobile home park", {}, None),
        ("a sari is no town, nor is a mesa", {}, None),
    ],
)
def test_large_cities_are_places_unless_they_are_words(gate: Gate, text: str, record: Any, reason: str | None) -> None:
    assert gate.reason(text, record) == reason


def test_cities_can_be_left_out(gate: Gate) -> None:
    without = Gate({**gate.lists, "city_inhabitants": 0})
    assert without.reason("a street in zlatoust", NOTHING) is None
    assert without.reason("a street in london", NOTHING) == "unsupported_place"


def test_published_captions_are_taken_apart(gate: Gate) -> None:
    fmow = (
        "a view over Lome, Togo in Spring shows a dam. ground sample distance of 1.88m. utm zone 31N, recorded at "
        "10 o'clock, May 1, 2016. angles were target azimuth at 21.93? and off-nadir at 6.86?. a dam in a valley"
    )
    ben = "from the Summer season, 'pastures' is of utm zone 34N and 9 o'clock, August 16, 2017. green land"
    found = list(gate_cases.published([fmow, ben, "a house by a road"], gate))
    assert found == [
        ("fMoW", "a dam in a valley", {"country": "Togo"}),
        ("BigEarthNet", "green land", {}),
        ("MillionAID", "a house by a road", {}),
    ]
