import re
from typing import Any

import pytest

from stages.errors import UserError
from stages.sources import SourceFile, descriptor_names, load_descriptor, named_files, resolve

FILES = {"data": (SourceFile(url="/a", size=1, version="1"),)}
MINE: dict[str, Any] = {"name": "mine", "format": "parquet", "columns": {"url": "u", "caption": "c"}}
ELEVEN = ["cc12m", "cc3m", "coyo700m", "laion2b", "laion400m", "laioncoco", "redcaps", "sbu", "vg", "wit", "yfcc15m"]


IMAGES = ["bigearthnet", "fmow", "millionaid"]


def test_shipped_descriptors_resolve() -> None:
    assert descriptor_names() == sorted(ELEVEN + IMAGES)
    for name in ELEVEN + IMAGES:
        descriptor = load_descriptor(name)
        assert descriptor is not None
        assert descriptor["licence"]
        assert descriptor["homepage"].startswith("https://")
        needed, _ = named_files(descriptor)
        assert resolve({"name": name}, dict.fromkeys(needed, FILES["data"])).format == descriptor["format"]


def test_entries_override_descriptors_key_by_key() -> None:
    source = resolve({"name": "laioncoco", "columns": {"caption": "TEXT"}, "where": "a = 1", "licence": "x"}, FILES)
    assert source.columns == {"url": "URL", "caption": "TEXT"}
    assert (source.where, source.licence) == ("a = 1", "x")


def test_a_condition_of_the_recipe_adds_to_the_descriptors() -> None:
    files = {"metadata": FILES["data"]}
    assert resolve({"name": "yfcc15m", "where": "a = 1 or b = 2"}, files).where == "(marker = 0) and (a = 1 or b = 2)"
    assert resolve({"name": "yfcc15m"}, files).where == "marker = 0"
    with pytest.raises(UserError, match="where"):
        resolve({"name": "yfcc15m", "where": "a = 1) or (b = 2"}, files)
    own_format = resolve({**MINE, "name": "cc3m", "format": "jsonl"}, FILES)
    assert own_format.options == {}


def test_digest_sees_reading_and_no_secret() -> None:
    source = resolve(MINE, FILES, storage_options={"secret": "s"})
    assert source.digest() == resolve(MINE, FILES, storage_options={"secret": "t"}).digest()
    assert source.digest() != resolve({**MINE, "where": "a = 1"}, FILES).digest()
    assert source.digest() != resolve(MINE, FILES, only=FILES["data"]).digest()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "a b"}, "name is 'a b'; it needs letters"),
        ({"colums": {}}, "source 'mine': unknown key 'colums' (did you mean 'columns'?)"),
        ({"format": "parket"}, "unknown format 'parket' (did you mean 'parquet'?)"),
        ({"format": None}, "it needs format and columns"),
        ({"format": ["parquet"]}, "unknown format ['parquet']"),
        ({"licence": 4}, "licence is 4; a text is needed"),
        ({"options": {"language": 3}}, "options.language is 3"),
        ({"format": "csv", "options": {"names": "url"}}, "options.names is 'url'; a list"),
        ({"columns": {"caption": "c"}}, "columns.url is missing"),
        ({"columns": {"url": "u"}}, "either caption (one column) or captions (several)"),
        ({"columns": {"url": "u", "caption": 1.5}}, "columns.caption is 1.5"),
        ({"columns": {"url": "u", "caption": "c", "licens": "l"}}, "did you mean 'licence'?"),
        ({"columns": {"url": "u", "captions": ["c"]}}, "columns.captions holds 'c'"),
        ({"columns": "u"}, "columns is 'u'; a mapping"),
        ({"where": "a <"}, "where 'a <': found the end"),
        ({"where": 3}, "where is 3; a text is needed"),
        ({"on_bad_file": "skip"}, "on_bad_file is 'skip'; accepted are fail and drop"),
        ({"options": {"hedaer": True}}, "options: unknown key 'hedaer'"),
        ({"options": {"origin": "web"}}, "options.origin is 'web'"),
        ({"unsafe": [{"column": "p"}]}, "unsafe holds {'column': 'p'}"),
        ({"unsafe": [{"column": "p", "over": "x"}]}, "over takes a number"),
    ],
)
def test_mistakes_are_one_sentence(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as error:
        resolve({**MINE, **change}, FILES)
    assert "\n" not in str(error.value)


def test_missing_and_unknown_named_files() -> None:
    with pytest.raises(UserError, match="path lacks 'regions'; needed are images, regions"):
        resolve({"name": "vg"}, {"images": FILES["data"]})
    with pytest.raises(UserError, match="unknown key 'data'"):
        resolve({"name": "vg"}, FILES)
