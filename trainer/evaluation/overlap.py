"""Whether a benchmark's images were trained on: the same bytes in the training tars."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from glob import glob
from hashlib import sha256
from pathlib import Path

from trainer.errors import UserError
from trainer.evaluation.files import SUFFIXES, Stored, tar_samples

INDEX = "index.parquet"
IMAGE_MEMBERS = frozenset([*(suffix[1:] for suffix in SUFFIXES), "img_content"])


def trained_digests(patterns: Sequence[str]) -> set[str]:
    """SHA-256 of the images in training tars, from the run's index where there is one, else from the tars.

    Args:
        patterns: Tars or globs of them, or an `index.parquet`, of which all tars count that are not in `val/`.

    Raises:
        UserError: a pattern matches nothing, or a file cannot be read.
    """
    found: set[str] = set()
    for pattern in patterns:
        paths = [Path(path) for path in sorted(glob(pattern, recursive=True))]
        if not paths:
            raise UserError(f"--train-data {pattern}: no file matches")
        for folder in sorted({path.parent for path in paths}):
            found |= _of_folder(folder, [path for path in paths if path.parent == folder])
    return found


def _of_folder(folder: Path, paths: Sequence[Path]) -> set[str]:
    if [path.name for path in paths] == [INDEX]:
        return {digest for tar, digest in _index(paths[0]) if tar.split("/")[-2:-1] != ["val"]}
    index = folder.parent / INDEX
    if not index.is_file():
        return set(_hashed(paths))
    wanted = {f"{folder.name}/{path.name}" for path in paths}
    rows = [(tar, digest) for tar, digest in _index(index) if "/".join(tar.split("/")[-2:]) in wanted]
    known = {tar.split("/")[-1] for tar, _ in rows}
    return {digest for _, digest in rows} | set(_hashed([path for path in paths if path.name not in known]))


def _index(path: Path) -> list[tuple[str, str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=["tar", "sha256"])
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"--train-data {path}: an index with the columns tar and sha256 is wanted ({error})") from error
    return list(zip(table["tar"].to_pylist(), table["sha256"].to_pylist(), strict=True))


def _hashed(paths: Sequence[Path]) -> Iterable[str]:
    for _, members in tar_samples(paths):
        for extension, stored in members.items():
            if extension in IMAGE_MEMBERS:
                yield sha256(stored.read()).hexdigest()


def overlapping(images: Sequence[Stored], trained: set[str]) -> list[str]:
    """Names of the images that were trained on."""
    return [image.name for image in images if image.digest() in trained]


def refuse(option: str, images: Sequence[Stored], trained: set[str], allowed: bool) -> int:
    """How many of a benchmark's images were trained on.

    Raises:
        UserError: some were, and that is not allowed.
    """
    found = overlapping(images, trained)
    if found and not allowed:
        raise UserError(
            f"{option}: {len(found)} of {len(images)} images are in --train-data, the first is {found[0]};"
            " --allow-overlap judges nevertheless"
        )
    return len(found)
