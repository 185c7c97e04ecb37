"""The demo's world on disk: metadata in true formats, fitted models, the blocklist and the recipe."""

from __future__ import annotations

import shutil
from pathlib import Path

from demo import fit, formats
from demo.corpus import SOURCES, Corpus

RECIPE = Path(__file__).parent.parent / "manifests" / "recipes" / "demo.yaml"
SHIPPED_ROOT = "demo-run"
"""The folder that the shipped recipe's paths begin with."""


def make(corpus: Corpus, root: Path) -> Path:
    """Write the world below `root`, models only where they are not yet; returns the recipe's path."""
    world = root / "world"
    shutil.rmtree(world / "sources", ignore_errors=True)
    for source in SOURCES:
        formats.write(source, [row for row in corpus.rows if row.source == source], world / "sources" / source)
    (world / "blocklist.txt").write_text("".join(f"{line}\n" for line in corpus.blocklist))
    fit.ensure(world / "models")
    recipe = world / "recipe.yaml"
    recipe.write_text(RECIPE.read_text().replace(f"{SHIPPED_ROOT}/", f"{root.resolve()}/"))
    return recipe
