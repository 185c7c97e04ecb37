from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from curation.report import labels
from curation.report.__main__ import main
from tests.curation.roots import HOSTILE, SOURCES, make_root, sample

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


class Page(HTMLParser):
    """Tags with their attributes, and the text of captions."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.captions: list[str] = []
        self._in_caption = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in_caption = tag == "bdi"

    def handle_data(self, data: str) -> None:
        if self._in_caption:
            self.captions.append(data)
            self._in_caption = False

    def values(self, name: str) -> list[str]:
        return [attributes[name] or "" for _, attributes in self.tags if name in attributes]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("root")
    make_root(path, samples=60)
    assert main(["--root", str(path)]) == 0
    return path


def facts(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / "report/report.json").read_text())
    return found


def page(root: Path) -> str:
    return (root / "report/index.html").read_text()


def test_the_funnel_is_that_of_the_samples(root: Path) -> None:
    rows = [sample(n) for n in range(60)]
    *sources, total = facts(root)["funnel"]
    assert [row["name"] for row in sources] == list(SOURCES)
    assert total["after_keyword_filtering"] == 60
    assert total["remain"] == sum(row["stage"] == "shards" for row in rows)
    assert total["duplicate_image"] == sum((row["reason"] or "").startswith("duplicate") for row in rows)
    assert total["download_image"] == sum(row["reason"] != "http_error" for row in rows)


def test_distributions_are_those_of_the_rows(root: Path) -> None:
    found = facts(root)
    kept = [sample(n) for n in range(60) if sample(n)["stage"] == "shards"]
    words = [len(row["caption"].replace("\x00", " x ").split()) for row in kept]
    assert found["caption_words"]["rows"] == len(kept)
    assert abs(found["caption_words"]["max"] - max(words)) <= 1
    assert sum(found["image_width"]["counts"]) == len(kept)
    assert found["image_width"]["lower"] == [0, 128, 256, 512, 1024]
    hits = {entry["keyword"]: (entry["matched"], entry["remain"]) for entry in found["keywords"]}
    assert hits["aerial view"] == (60, len(kept))
    assert hits["Landsat"] == (15, sum("Landsat" in row["keywords"] for row in kept))
    assert hits["Gaofen"] == (0, 0)
    assert sum(entry["rows"] for entry in found["domains"]) == len(kept)
    assert found["domain_count"] == 5
    stated = sum(row["licence"] is None for row in kept)
    assert {"licence": "not stated", "rows": stated} in found["licences"]
    scored = [n for n in range(60) if sample(n)["stage"] in ("outliers", "shards")]
    assert found["scores"]["vlm_score"]["rows"] == len(scored)
    assert found["scores"]["vlm_score"]["threshold"] == 0.15
    assert found["scores"]["detector_logit"]["keep"] == 0.8


def test_drop_reasons_add_up_per_source(root: Path) -> None:
    for source in SOURCES:
        dropped = sum(entry["sources"].get(source, 0) for entry in facts(root)["drop_reasons"])
        row = next(row for row in facts(root)["funnel"] if row["name"] == source)
        assert dropped == row["amount"] - row["remain"]


def test_what_each_source_added_is_what_dedup_counted(root: Path) -> None:
    found = facts(root)
    counts = json.loads((root / "dedup/manifest.json").read_text())["counts"]
    rows = found["added"]["rows"]
    assert [row["source"] for row in rows] == found["added"]["names"]
    assert {row["source"]: row["kept"] for row in rows} == {name: entry["kept"] for name, entry in counts.items()}
    for row in rows:
        assert sum(row["twins_of"]) == sum(counts[row["source"]]["dropped"].values())
        assert all(
            (shade > 0) == (count > 0) and shade <= 5
            for shade, count in zip(row["shades"], row["twins_of"], strict=True)
        )
    assert re.search('<td class="shade[1-5]">', page(root))
    assert "What each source added" in (root / "report/report.md").read_text()


def test_the_largest_groups_are_shown_with_the_kept_image_first(root: Path) -> None:
    found = facts(root)["groups"]
    twins = sum(row["rows"] for row in facts(root)["drop_reasons"] if row["stage"] == "dedup")
    assert found["largest"][0][1] == found["sizes"]["max"] == twins + 1
    assert sum(found["sizes"]["counts"]) == found["sizes"]["rows"] == 1
    shown = page(root).partition('<section id="groups">')[2].partition("</section>")[0]
    assert f"{twins + 1} rows" in shown
    assert shown.count("<figure>") == min(twins + 1, 12)
    assert shown.count("data:image/jpeg;base64,") == shown.count("<figure>")
    first = shown.partition("</figure>")[0].rpartition("<figcaption>")[2]
    assert found["largest"][0][0][:10] in first
    assert "3 test images and 15 captions, 1 unreadable: 2 rows match by bytes." in shown
    assert "## Largest groups of twins" in (root / "report/report.md").read_text()


def test_the_page_loads_nothing_and_runs_nothing(root: Path) -> None:
    read = Page(page(root))
    names = {tag for tag, _ in read.tags}
    assert not names & {"script", "iframe", "object", "embed", "link", "form", "base", "b-port"}
    assert all(value.startswith("data:image/jpeg;base64,") for value in read.values("src"))
    assert all(value.startswith(("http://", "https://", "#")) for value in read.values("href"))
    assert not [name for _, attributes in read.tags for name in attributes if name.startswith("on") or name == "style"]
    policy = next(a["content"] or "" for _, a in read.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "url(" not in page(root)
    assert "@import" not in page(root)


def test_a_hostile_caption_stays_text(root: Path) -> None:
    captions = [" ".join(caption.split()) for caption in Page(page(root)).captions]
    assert "<script>alert(1)</script> aerial view [31m of a <b>port</b>" in captions
    assert "<script>" not in page(root)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", page(root))


def test_samples_are_few_and_always_the_same(root: Path) -> None:
    first = page(root)
    assert main(["--root", str(root)]) == 0
    assert page(root) == first
    reasons = re.findall(r"<summary><b>(\w+)</b>", first)
    expected = {sample(n)["reason"] for n in range(60)} - {None}
    assert set(reasons) == expected


def test_thumbnails_are_made_anew_and_small(root: Path) -> None:
    from PIL import Image

    sources = Page(page(root)).values("src")
    assert sources
    for source in sources[:5]:
        image = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
        assert image.format == "JPEG"
        assert max(image.size) <= 208


def test_files_beside_the_page(root: Path) -> None:
    from PIL import Image

    pictures = sorted((root / "report").glob("*.png"))
    assert {"funnel.png", "drop_reasons.png", "keywords.png", "caption_words.png", "image_width.png"} <= {
        picture.name for picture in pictures
    }
    assert all(Image.open(picture).width > 400 for picture in pictures)
    text = (root / "report/report.md").read_text()
    total = facts(root)["funnel"][-1]
    assert f"| Total | {total['amount']:,} | 60 |" in text
    assert "Warning: laion2b: left out: b.parquet" in text


@pytest.mark.parametrize("to", ["keywords", "download", "dedup", "outliers"])
def test_partial_runs(tmp_path: Path, to: str) -> None:
    make_root(tmp_path, samples=24, to=to)
    assert main(["--root", str(tmp_path)]) == 0
    found = facts(tmp_path)
    assert found["unfinished"][-1] == "shards"
    assert (found["funnel"][-1]["download_image"] is None) == (to == "keywords")
    assert "Not finished yet" in page(tmp_path)


@pytest.mark.parametrize("to", ["keywords", "shards"])
def test_no_rows_at_all(tmp_path: Path, to: str) -> None:
    make_root(tmp_path, samples=0, to=to)
    assert main(["--root", str(tmp_path)]) == 0
    assert facts(tmp_path)["funnel"][-1]["remain"] == 0


def test_a_run_without_any_finished_stage(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"name": "x", "stages": {"keywords": {}}}))
    assert main(["--root", str(tmp_path)]) == 0
    assert facts(tmp_path)["unfinished"] == ["keywords"]


def test_no_run_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--root", str(tmp_path / "nowhere")]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_counts_that_do_not_add_up_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_root(tmp_path, samples=12, to="dedup")
    path = tmp_path / "dedup/manifest.json"
    data = json.loads(path.read_text())
    data["counts"]["cc3m"]["in"] += 1
    path.write_text(json.dumps(data))
    assert main(["--root", str(tmp_path)]) == 1
    assert "stage dedup, source cc3m" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "linked"),
    [
        ("http://a.org/x", True),
        ("HTTPS://a.org/x", True),
        ("javascript:alert(1)", False),
        ("data:text/html,x", False),
        ("//a.org/x", False),
        ("http://[bad", False),
        (None, False),
        ("http://h/" + "a" * 3_000, False),
    ],
)
def test_only_web_addresses_are_linked(url: str | None, linked: bool) -> None:
    assert (labels.weblink(url) is not None) == linked


def test_marks_that_turn_writing_round_are_gone() -> None:
    assert labels.clean("a\u202eb\x1b[0m\u2066c") == "a b [0m c"


def test_a_markdown_cell_is_only_text() -> None:
    assert labels.markdown("a|b <img src=x> [c](d)\n# e") == r"a\|b \<img src=x\> \[c\](d) \# e"


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_chromium_shows_the_hostile_caption_as_text(root: Path, tmp_path: Path) -> None:
    options = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    command = [
        str(CHROMIUM),
        *options.split(),
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path}",
        "--dump-dom",
        (root / "report/index.html").as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert HOSTILE.partition(" ")[0].replace("<", "&lt;").replace(">", "&gt;") in done.stdout
    assert "<script" not in done.stdout
    assert "style" in done.stdout
