from __future__ import annotations

import pytest

from trainer.captioner import meteor


@pytest.fixture(autouse=True)
def no_wordnet(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without nltk's corpora."""
    monkeypatch.setattr(meteor, "_wordnet", meteor.NoSynonyms)


def test_figures_by_hand() -> None:
    """METEOR = F (1 - 0.5 (chunks / matches) ** 3), F = P R / (0.9 P + 0.1 R)."""
    assert meteor.score("a road", "a road") == pytest.approx(1 - 0.5 / 8)
    assert meteor.score("A Road", "a road") == pytest.approx(1 - 0.5 / 8)  # case
    assert meteor.score("many roads", "many road") == pytest.approx(1 - 0.5 / 8)  # stem
    assert meteor.score("a lake", "the river") == 0
    precision, recall = 2 / 2, 2 / 4
    mean = precision * recall / (0.9 * precision + 0.1 * recall)
    assert meteor.score("a road", "a road and trees") == pytest.approx(mean * (1 - 0.5 / 8))
    assert meteor.score("trees a", "a road and trees") == pytest.approx(mean * (1 - 0.5))  # two chunks


def test_synonyms_are_not_found_without_wordnet_and_the_label_says_so() -> None:
    assert meteor.score("car", "automobile") == 0
    assert meteor.label() == "meteor_exact_stem"
    assert set(meteor.scores(["a road"], [["a road"]], 0)) == {"meteor_exact_stem", "meteor_exact_stem_best"}


def test_one_reference_is_drawn_by_seed_and_the_best_is_told_beside_it() -> None:
    references = [["a road", "some boats"]] * 50
    found = meteor.scores(["a road"] * 50, references, 3)
    assert found == meteor.scores(["a road"] * 50, references, 3)
    one = meteor.score("a road", "a road")
    assert found["meteor_exact_stem_best"] == pytest.approx(one)
    assert 0.2 * one < found["meteor_exact_stem"] < 0.8 * one
