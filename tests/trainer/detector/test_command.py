from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from descriptors import FILE
from tests.trainer.detector.conftest import TOY
from trainer.detector.__main__ import ELSEWHERE, main
from trainer.detector.config import load as load_config
from trainer.detector.evaluation import degradations
from trainer.detector.finishing import LOUDNESS
from trainer.detector.model import load, load_network, score


@pytest.fixture(scope="module")
def trained(toy_data: Path, toy_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    common = [
        "--config",
        str(toy_file),
        "--data",
        str(toy_data),
        "--out",
        str(out),
        "--device",
        "cpu",
        "--workers",
        "1",
    ]
    assert main(["train", *common]) == 0
    assert main(["leave-out", *common, "--steps", "2"]) == 0
    assert main(["leave-out", *common, "--steps", "2", "--design", "curve"]) == 0
    return out


def scores(folder: Path, data: Path, whole: bool = True) -> np.ndarray:
    """Log-odds of the toy world's pictures, with what stands beside the network or without."""
    network, transform = load(folder)
    pictures = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(data.rglob("*.png"))]
    return score(network if whole else load_network(folder), transform, pictures)


def test_training_leaves_a_model_its_figures_and_a_plot(trained: Path) -> None:
    found = json.loads((trained / "metrics.json").read_text())
    assert set(found["robustness"]) == set(degradations())
    assert set(found["precision"]) == {"0.5", "0.75", "0.9"}
    assert {"fields", "people"} <= set(found["sources"])
    assert (trained / "model" / "model.safetensors").stat().st_size < 8_000_000
    assert (trained / "reliability.png").read_bytes().startswith(b"\x89PNG")
    training = json.loads((trained / "training.json").read_text())
    assert sum(training["data"]["fields"][part] for part in ("train", "validation", "test")) == 24
    assert training["history"][-1]["step"] == 24


def test_evaluating_again_gives_the_same_figures(trained: Path, toy_data: Path, toy_file: Path) -> None:
    before = (trained / "metrics.json").read_bytes()
    common = ["--config", str(toy_file), "--data", str(toy_data), "--out", str(trained), "--device", "cpu"]
    assert main(["evaluate", *common]) == 0
    assert (trained / "metrics.json").read_bytes() == before


def test_sources_of_another_config_are_judged_and_told(
    trained: Path, toy_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strange = {"folder": "roofs", "label": "rs", "use": "test", "tile": 20, "origin": "a roofer", "licence": "CC0-1.0"}
    config = tmp_path / "strange.yaml"
    plain = {"sources": {"strange": strange}, "drawn": {"per_kind": 0}, "model": {"architecture": "x"}}
    common = ["--config", str(config), "--data", str(toy_data), "--out", str(trained), "--device", "cpu"]
    config.write_text(yaml.safe_dump(plain))
    assert main(["elsewhere", *common]) == 2
    assert "sources of both classes" in capsys.readouterr().err
    config.write_text(yaml.safe_dump(plain | {"sources": {"strange": strange, "pets": TOY["sources"]["pets"]}}))
    assert main(["elsewhere", *common]) == 0
    found = json.loads((trained / "elsewhere.json").read_text())
    assert found["sources"]["strange"]["images"] > 24
    assert main(["card", "--out", str(trained)]) == 0
    card = (trained / "README.md").read_text()
    assert f"| strange | rs | {found['sources']['strange']['images']} |" in card
    assert "a roofer" in card


def test_the_shipped_list_of_sources_elsewhere_trains_on_none() -> None:
    found = load_config(ELSEWHERE)
    assert {source.use for source in found.sources.values()} == {"test"}
    assert {source.label for source in found.sources.values()} == {"rs", "other"}
    assert not found.drawn.per_kind
    assert all(source.origin and source.licence for source in found.sources.values())


def test_the_card_holds_the_figures_of_the_files(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("Scale models look like towns.\n")
    assert main(["card", "--out", str(trained), "--notes", str(tmp_path / "notes.md")]) == 0
    card = (trained / "README.md").read_text()
    found = json.loads((trained / "metrics.json").read_text())
    assert f"{100 * found['test']['balanced_accuracy']:.2f} %" in card
    assert f"| jpeg 40 | {100 * found['robustness']['jpeg 40']['balanced_accuracy']:.2f} %" in card
    assert "| people | other |" in card
    assert "CC0-1.0" in card
    assert "## Sources never seen" in card
    assert "## More sources, better?" in card
    assert "Scale models look like towns." in card
    rows = [line for line in card.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in rows)


def test_what_is_shipped_loads_and_renders_again(trained: Path, tmp_path: Path) -> None:
    assert main(["card", "--out", str(trained)]) == 0
    assert main(["ship", "--out", str(trained), "--to", str(tmp_path / "detector")]) == 0
    shipped = {path.name for path in (tmp_path / "detector").iterdir()}
    assert {"config.json", "model.safetensors", FILE, "README.md", "metrics.json", "reliability.png"} <= shipped
    assert "checkpoint.pt" not in shipped
    load(tmp_path / "detector")
    card = (tmp_path / "detector" / "README.md").read_bytes()
    assert main(["card", "--out", str(tmp_path / "detector")]) == 0
    assert (tmp_path / "detector" / "README.md").read_bytes() == card


def test_refitting_keeps_the_network_and_comes_to_the_same_layer(
    trained: Path, toy_data: Path, toy_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "again"
    shutil.copytree(trained, out)
    (out / "model" / FILE).unlink()
    common = ["--config", str(toy_file), "--data", str(toy_data), "--out", str(out), "--device", "cpu"]
    assert main(["refit", *common, "--workers", "0", "--threads", "2"]) == 0
    first, second = (scores(folder / "model", toy_data) for folder in (trained, out))
    assert np.allclose(first, second, rtol=0.02, atol=0.05)
    before, after = (json.loads((folder / "training.json").read_text()) for folder in (trained, out))
    assert after["temperature"] == pytest.approx(before["temperature"], rel=0.05)
    assert after["history"] == before["history"]


def test_refitting_wants_a_trained_network(
    toy_data: Path, toy_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--config", str(toy_file), "--data", str(toy_data), "--out", str(tmp_path), "--device", "cpu"]
    assert main(["refit", *common]) == 2
    assert "training.json is not there" in capsys.readouterr().err


def test_the_network_speaks_a_fifth_as_loud_as_the_perceptron(trained: Path, toy_data: Path) -> None:
    both, alone = (scores(trained / "model", toy_data, whole) for whole in (True, False))
    assert 0.5 * LOUDNESS < alone.std() / (both - alone).std() < 2 * LOUDNESS


def test_without_descriptors_there_is_no_file_and_shipping_removes_an_old_one(trained: Path, tmp_path: Path) -> None:
    out, to = tmp_path / "plain", tmp_path / "shipped"
    shutil.copytree(trained, out)
    assert main(["card", "--out", str(out)]) == 0
    assert main(["ship", "--out", str(out), "--to", str(to)]) == 0
    assert (to / FILE).exists()
    (out / "model" / FILE).unlink()
    assert main(["ship", "--out", str(out), "--to", str(to)]) == 0
    assert not (to / FILE).exists()


def test_a_card_without_figures_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["card", "--out", str(tmp_path)]) == 2
    assert "training.json is not there" in capsys.readouterr().err


def test_speed_is_told_as_json(toy_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["speed", "--config", str(toy_file), "--seconds", "0.05"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["architecture"] == "test_resnet"
    assert found["images_per_second"] > 0


def test_the_sheet_is_a_picture(tmp_path: Path) -> None:
    assert main(["sheet", "--out", str(tmp_path / "a" / "sheet.png")]) == 0
    assert (tmp_path / "a" / "sheet.png").stat().st_size > 10_000


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, trainer.detector.__main__ as m; m.parser();"
        "print([n for n in ('torch', 'timm', 'PIL', 'numpy', 'yaml') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": os.getcwd()},
    )
    assert done.stdout.strip() == "[]"


def test_degradations_keep_pictures_pictures() -> None:
    from PIL import Image

    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8))
    shapes = {name: np.asarray(change(image)).shape for name, change in degradations().items()}
    assert shapes["size 64"] == (64, 85, 3)
    assert shapes["turn 90"] == (80, 60, 3)
    assert all(shape[2] == 3 for shape in shapes.values())
