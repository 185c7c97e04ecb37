"""Models a recipe names: what is wrong is one sentence, before anything runs."""

from __future__ import annotations

import http.server
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from demo.models import make_detector, make_open_clip
from stages.errors import UserError
from stages.models import ModelRef, open_clip_names


def clip(model: str, pretrained: str | None = None) -> ModelRef:
    return ModelRef(library="open_clip", where="stages.outliers.vlm", model=model, pretrained=pretrained)


def classifier(model: str) -> ModelRef:
    return ModelRef(library="timm", where="stages.outliers.detector", model=model)


def sentence(ref: ModelRef) -> str:
    with pytest.raises(UserError) as caught:
        ref.check()
    text = str(caught.value)
    assert text.startswith(ref.where)
    assert "\n" not in text
    return text


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A hub that nothing answers for, and an empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


def test_folders_in_the_libraries_formats_pass(tmp_path: Path) -> None:
    clip(str(make_open_clip(tmp_path / "clip"))).check()
    classifier(str(make_detector(tmp_path / "detector"))).check()
    by_url = clip(f"file://{tmp_path}/clip")
    by_url.check()
    assert by_url.identifier == f"local-dir:{tmp_path}/clip"
    assert by_url.files() == clip(str(tmp_path / "clip")).files()


def test_what_a_folder_lacks_is_named(tmp_path: Path) -> None:
    folder = make_open_clip(tmp_path / "clip")
    assert "no config.json" in sentence(classifier(str(folder)))
    (folder / "open_clip_model.safetensors").unlink()
    assert "has no weights" in sentence(clip(str(folder)))
    (folder / "open_clip_config.json").write_text("{}")
    (folder / "weights.bin").write_bytes(b"")
    assert "'model_cfg'" in sentence(clip(str(folder)))
    (folder / "open_clip_config.json").write_text("{")
    assert "cannot be read as JSON" in sentence(clip(str(folder)))
    (folder / "open_clip_config.json").unlink()
    assert "no open_clip_config.json" in sentence(clip(str(folder)))
    assert "no folder" in sentence(clip(str(tmp_path / "nowhere")))


def test_a_folder_brings_its_own_weights(tmp_path: Path) -> None:
    assert "must be left out" in sentence(clip(str(make_open_clip(tmp_path / "clip")), "openai"))


def test_an_unknown_name_gets_its_neighbours() -> None:
    text = sentence(clip("convnext_xxlargee", "laion2b_s34b_b82k_augreg_soup"))
    assert "near it: convnext_xxlarge" in text


def test_an_unknown_tag_gets_the_known_ones() -> None:
    text = sentence(clip("convnext_xxlarge", "laion2b_s34b_b82k_augreg_soupe"))
    assert "near it: laion2b_s34b_b82k_augreg_soup" in text
    assert "'None'" not in sentence(clip("ViT-B-32"))


def test_openai_weights_need_quick_gelu() -> None:
    text = sentence(clip("ViT-B-32", "openai"))
    assert "name the model 'ViT-B-32-quickgelu'" in text


@pytest.mark.usefixtures("offline")
def test_weights_that_cannot_be_fetched_come_with_the_command() -> None:
    text = sentence(clip("ViT-B-32", "laion2b_s34b_b79k"))
    assert "open_clip.create_model('ViT-B-32', pretrained='laion2b_s34b_b79k')" in text
    assert text.endswith("(licence: MIT; the hub's page of laion/CLIP-ViT-B-32-laion2B-s34B-b79K has the terms)")
    assert "(licence: CC-BY-NC-4.0; " in sentence(clip("ViT-B-32-quickgelu", "metaclip_400m"))
    text = sentence(classifier("org/name"))
    assert "timm.create_model('hf-hub:org/name', pretrained=True)" in text
    assert text.endswith("(for the licence see the hub's page of org/name)")


@pytest.mark.usefixtures("offline")
def test_weights_in_the_cache_need_no_network(tmp_path: Path) -> None:
    snapshot = tmp_path / "cache" / "models--org--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (tmp_path / "cache" / "models--org--name" / "refs").mkdir()
    (tmp_path / "cache" / "models--org--name" / "refs" / "main").write_text("abc")
    classifier("hf-hub:org/name").check()
    assert "hf-hub:org/other" in sentence(classifier("hf-hub:org/other"))


def test_weights_named_by_the_recipe_may_be_fetched_where_the_hub_answers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    try:
        clip("ViT-B-32", "laion2b_s34b_b79k").check()
    finally:
        server.shutdown()
        server.server_close()
    assert "laion2b_s34b_b79k" in sentence(clip("ViT-B-32", "laion2b_s34b_b79k"))


def test_names_are_what_the_library_lists() -> None:
    import open_clip

    assert set(open_clip_names()) == set(open_clip.list_models())


def test_a_recipes_folder_is_checked_without_loading_a_library(tmp_path: Path) -> None:
    folder = make_open_clip(tmp_path / "clip")
    code = (
        "import sys; from stages.outliers import OutliersConfig, OutliersStage, VlmConfig; "
        f"OutliersStage(OutliersConfig(vlm=VlmConfig(model={str(folder)!r}))).check(); "
        "print(sorted({'torch', 'open_clip', 'timm', 'PIL', 'ray', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
