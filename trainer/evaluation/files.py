"""Images where they lie: files in folders and members of tars, read, hashed and told apart by their bytes."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from trainer.errors import UserError

SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm"])


@dataclass(frozen=True)
class Stored:
    """The bytes of a file, or of a part of it."""

    path: Path
    offset: int = 0
    size: int = -1
    member: str = ""

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.path}/{self.member}" if self.member else str(self.path)

    def read(self) -> bytes:
        """The bytes.

        Raises:
            UserError: the file is not there.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                return file.read(self.size)
        except OSError as error:
            raise UserError(f"{self.name}: cannot be read ({error.strerror})") from error

    def digest(self) -> str:
        """SHA-256 of the bytes, in lower-case hex."""
        return hashlib.sha256(self.read()).hexdigest()


def open_rgb(data: bytes) -> Any:
    """A PIL image in RGB, or None when the bytes do not decode."""
    from PIL import Image

    try:
        with Image.open(BytesIO(data)) as opened:
            return opened.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def images_below(folder: Path) -> list[Path]:
    """Image files at any depth, by name."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)


def tar_samples(paths: Sequence[Path]) -> Iterator[tuple[str, dict[str, Stored]]]:
    """(key, {extension: member}) of each sample of webdataset tars: neighbours that share all before the first dot.

    Raises:
        UserError: a file is no tar.
    """
    for path in paths:
        try:
            yield from _samples(path)
        except (tarfile.TarError, OSError) as error:
            raise UserError(f"{path}: cannot be read as a tar ({error})") from error


def _samples(path: Path) -> Iterator[tuple[str, dict[str, Stored]]]:
    held: dict[str, Stored] = {}
    last = ""
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            folder, _, name = member.name.rpartition("/")
            stem, _, extension = name.partition(".")
            key = f"{folder}/{stem}" if folder else stem
            if held and key != last:
                yield last, held
                held = {}
            if member.isfile():
                held[extension.lower()] = Stored(path, member.offset_data, member.size, member.name)
                last = key
    if held:
        yield last, held
