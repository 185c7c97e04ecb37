"""Every mistake in a recipe is a sentence that names the key, what it held and what is accepted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from curation import run
from curation.recipe import Recipe, load, root_store
from stages.base import OutputFile
from stages.errors import UserError
from stages.schema import COMMON, KEYWORDS, extend
from tests.harness import give_input


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    table = pa.table({"URL": ["http://h/1.jpg"], "TEXT": ["an aerial view"], "punsafe": [0.1]})
    pq.write_table(table, tmp_path / "part-0.parquet")
    return tmp_path


def recipe(folder: Path, **changes: Any) -> dict[str, Any]:
    whole: dict[str, Any] = {
        "name": "test",
        "sources": [{"name": "laion2b", "path": str(folder / "*.parquet")}],
        "stages": {"keywords": {"pack": "rs5m"}, "download": {"retries": 1}, "dedup": {"radius": 2}},
    }
    return {key: value for key, value in (whole | changes).items() if value != "absent"}


def read(folder: Path, whole: Any, *overrides: str) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_text(whole if isinstance(whole, str) else yaml.safe_dump(whole, sort_keys=False))
    return load(str(path), overrides)


def test_a_good_recipe(folder: Path) -> None:
    made = read(folder, recipe(folder))
    assert (made.name, made.subset, made.seed) == ("test", "test", 2023)
    assert [stage.name for stage in made.stages] == ["keywords", "download", "dedup"]
    assert [file.url for file in made.sources[0].files["data"]] == [str(folder / "part-0.parquet")]
    effective = made.effective()
    assert effective["stages"]["dedup"]["radius"] == 2
    assert effective["stages"]["download"]["retries"] == 1
    assert read(folder, effective).effective() == effective


def test_overrides(folder: Path) -> None:
    made = read(
        folder, recipe(folder), "stages.dedup.radius=3", "seed=7", "sources.laion2b.where=punsafe < 0.05", "subset=pub"
    )
    assert made.stage("dedup").config.radius == 3
    assert (made.seed, made.subset, made.sources[0].where) == (7, "pub", "punsafe < 0.05")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("stages.dedup.radus=3", r"stages.dedup.radus: unknown option \(did you mean 'radius'\?\)"),
        ("stages.dedupe.radius=3", r"stages.dedupe: unknown stage \(did you mean 'dedup'\?\); stages: keywords, "),
        ("stages.dedup.radius", "a.b.c=value is wanted"),
        ("stages.dedup.radius.x=1", "2.*has no 'x'"),
        ("sources.laion2.path=x", r"no entry 'laion2' \(did you mean 'laion2b'\?\)"),
        ("stages.dedup.radius=[1", "'\\[1' is not a YAML value"),
    ],
)
def test_wrong_overrides(folder: Path, override: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        read(folder, recipe(folder), override)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sorces": []}, r"sorces: unknown key \(did you mean 'sources'\?\)"),
        ({"stages": "absent"}, "stages: a mapping of stages is wanted, found None"),
        ({"stages": {"keyword": {}}}, r"stages.keyword: unknown stage \(did you mean 'keywords'\?\)"),
        ({"stages": {"keywords": {"pak": "rs5m"}}}, r"stages.keywords.pak: unknown option \(did you mean 'pack'\?\)"),
        ({"stages": {"keywords": {"pack": "nosuch"}}}, "nosuch"),
        ({"stages": {"dedup": {}}}, "stages: dedup comes first, but it reads no sources; begin with keywords"),
        (
            {"stages": {"keywords": {}, "dedup": {}}},
            "stages.dedup: it needs the column 'height', which no stage",
        ),
        (
            {"stages": {"keywords": {}, "download": {"retries": "two"}}},
            "stages.download.retries: a whole number is wanted",
        ),
        ({"stages": {"keywords": {}, "download": {}, "dedup": {"radius": 99}}}, "radius.*99"),
        ({"seed": "x"}, "seed: a whole number from 0 on is wanted, found 'x'"),
        ({"name": "a/b"}, "name: a name of letters"),
        ({"sources": []}, r"sources: a list of sources is wanted, found \[\]"),
        ({"sources": [{"name": "laion2b"}]}, r"sources\[0\]: a mapping with name and path is wanted"),
        ({"sources": [{"name": "laion2b", "path": "/nosuch/*.parquet"}]}, "sources.laion2b.path: .*matches no file"),
        ({"sources": [{"name": "laion2b", "path": "/nosuch.parquet"}]}, "sources.laion2b.path: .*does not exist"),
        ({"sources": [{"name": "laion2b", "path": "memory://x"}]}, "memory:// cannot be used"),
        ({"blocklist": ["/nosuch.txt"]}, "blocklist: '/nosuch.txt' does not exist"),
        ({"blocklist": "x"}, "blocklist: a list of paths is wanted"),
        ({"sources": [{"name": "laion2b", "path": []}]}, "sources.laion2b.path: .*found an empty list"),
        ({"stages": {"keywords": {}, "download": {"timeout_s": float("nan")}}}, "timeout_s: a finite number is wanted"),
        ({"stages": {"keywords": {}, "download": {"timeout_s": 10**400}}}, "timeout_s: a number within 64 bits"),
        ({"stages": {"keywords": {}, "download": {"contact": "a\r\nb: c"}}}, "stages.download: user_agent or contact"),
    ],
)
def test_mistakes(folder: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        read(folder, recipe(folder, **changes))


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ({"name": "mine"}, "format"),
        (
            {"name": "mine", "format": "parquett", "columns": {"url": "URL", "caption": "TEXT"}},
            "did you mean 'parquet'",
        ),
        ({"name": "laion2b", "wher": "x > 1"}, "did you mean 'where'"),
        ({"name": "laion2b", "where": "punsafe <"}, "where"),
        ({"name": "laion2b", "on_bad_file": "ignore"}, "on_bad_file"),
    ],
)
def test_wrong_sources(folder: Path, entry: dict[str, Any], sentence: str) -> None:
    source = {"path": str(folder / "*.parquet"), **entry}
    with pytest.raises(UserError, match=sentence):
        read(folder, recipe(folder, sources=[source]))


def test_a_source_twice(folder: Path) -> None:
    entry = {"name": "laion2b", "path": str(folder)}
    with pytest.raises(UserError, match="'laion2b' is there twice"):
        read(folder, recipe(folder, sources=[entry, entry]))


def test_not_yaml_and_not_there(folder: Path) -> None:
    with pytest.raises(UserError, match="is not YAML in line 3"):
        read(folder, "name: x\nstages: [a\n")
    with pytest.raises(UserError, match="a mapping with name"):
        read(folder, "- a\n")
    with pytest.raises(UserError, match=r"recipe 'nosuch.yaml' does not exist; shipped recipes: .*pub11"):
        load("nosuch.yaml")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name: x\nseed: 1\nseed: 2\n", "in line 3: 'seed' is there twice"),
        ("name: x\nstages:\n  keywords: {pack: rs, pack: rs5m}\n", "in line 3: 'pack' is there twice"),
        ("name: &a [*a]\n", "holds an alias of itself"),
    ],
)
def test_yaml_that_would_silently_mean_something_else(folder: Path, text: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        read(folder, text)


def test_merge_keys_may_be_overridden(folder: Path) -> None:
    text = f"""
sources:
  - &base {{name: laion2b, path: "{folder}/*.parquet"}}
  - {{<<: *base, name: laion400m}}
stages: {{keywords: {{}}}}
"""
    assert [source.name for source in read(folder, text).sources] == ["laion2b", "laion400m"]


def test_paths_of_every_kind_in_a_folder_with_an_awkward_name(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "wé%20[x] dir"
    (here / "in").mkdir(parents=True)
    data, listed = here / "in" / "a b%41.parquet", here / "list.txt"
    (folder / "part-0.parquet").rename(data)
    listed.write_text("example.org\n")
    monkeypatch.chdir(here)
    for path in ("in/*.parquet", "in", "in/a b%41.parquet", f"file://{data}", str(data)):
        made = read(folder, recipe(folder, sources=[{"name": "laion2b", "path": path}]))
        assert [file.url for file in made.sources[0].files["data"]] == [str(data)]
    for path in ("list.txt", "*.txt", f"file://{listed}"):
        made = read(folder, recipe(folder, blocklist=[path, path], sources=[{"name": "laion2b", "path": str(data)}]))
        assert made.blocklist == (str(listed),)


def test_variables_come_from_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHERE_IT_LIES", str(folder))
    whole = recipe(folder, sources=[{"name": "laion2b", "path": "${WHERE_IT_LIES}/*.parquet"}])
    assert read(folder, whole).sources[0].files["data"][0].size > 0
    with pytest.raises(UserError, match="environment variable NOT_THERE is not set"):
        read(folder, recipe(folder, name="${NOT_THERE}"))


def test_exit_codes_and_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read(folder, recipe(folder))
    code = run.main([str(folder / "recipe.yaml"), "--root", str(folder / "out"), "--set", "stages.dedup.radus=1"])
    err = capsys.readouterr().err
    assert code == 2
    assert err.count("\n") == 1
    assert err.startswith("error: stages.dedup.radus: unknown option")
    assert not (folder / "out").exists()


def test_only_needs_what_is_before(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read(folder, recipe(folder))
    command = [str(folder / "recipe.yaml"), "--root", str(folder / "out")]
    assert run.main([*command, "--only", "dedup"]) == 2
    assert "stage keywords before it has no manifest" in capsys.readouterr().err
    assert run.main([*command, "--only", "dedop"]) == 2
    assert "did you mean 'dedup'" in capsys.readouterr().err
    assert run.main([*command, "--from", "dedup", "--to", "keywords"]) == 2
    assert "comes after" in capsys.readouterr().err


def test_the_plan_runs_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read(folder, recipe(folder))
    assert run.main([str(folder / "recipe.yaml"), "--root", str(folder / "out"), "--plan"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("keywords   to run: not run yet; 0 rows to adopt, 1 to do")
    assert lines[1].startswith("download   to run: after keywords")
    assert not (folder / "out").exists()


def test_the_plan_says_what_a_search_for_near_hashes_takes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read(folder, recipe(folder))
    give_input(folder / "out", "keywords", [extend(COMMON, KEYWORDS).empty_table()])
    part = OutputFile(path="download/part-0.parquet", rows=10**9, bytes=0, sha256="")
    give_input(folder / "out", "download", [], extra=[part])
    command = [str(folder / "recipe.yaml"), "--root", str(folder / "out"), "--plan", "--allow-stale"]
    assert run.main([*command, "--set", "stages.dedup.radius=6"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("dedup"))
    assert "1,000,000,000 to do; near hashes of 1,000,000,000 rows within 6 bits take about 5,703.1 minutes" in line
    assert line.endswith("2,257,255 pairs by chance, more than max_minutes (60) allows")


@pytest.mark.parametrize("root", ["", "s3://", "file://"])
def test_a_root_that_names_nothing(folder: Path, root: str) -> None:
    with pytest.raises(UserError, match=r"--root .*: a folder or an fsspec URL is wanted"):
        root_store(root)


def test_a_root_below_a_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read(folder, recipe(folder))
    for root in ("recipe.yaml", "recipe.yaml/run"):
        assert run.main([str(folder / "recipe.yaml"), "--root", str(folder / root), "--plan"]) == 2
        assert "recipe.yaml' is a file" in capsys.readouterr().err


def test_retrying_without_the_download_stage(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read(folder, recipe(folder))
    options = ["--root", str(folder / "run"), "--retry-failed", "--plan"]
    assert run.main([str(folder / "recipe.yaml"), *options, "--only", "keywords"]) == 2
    assert "--retry-failed: it is about download" in capsys.readouterr().err
    assert run.main([str(folder / "recipe.yaml"), *options]) == 0
