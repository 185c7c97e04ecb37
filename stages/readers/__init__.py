"""Readers of image-text metadata: a source's bounded pieces, and the rows of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from stages.errors import UnitError
from stages.readers import json_files, lines, parquet, separated, visual_genome, yfcc
from stages.readers.batch import Batch, BrokenFile, Piece
from stages.sources import Source, SourceFile

__all__ = ["Batch", "BrokenFile", "Piece", "piece_file", "pieces", "read"]


class Reader(NamedTuple):
    """How a format is cut and read."""

    pieces: Callable[[Source], Iterator[Piece]]
    read: Callable[[Source, Piece], Iterator[Batch]]


READERS = {
    "parquet": Reader(parquet.pieces, parquet.read),
    "tsv": Reader(separated.tsv_pieces, separated.read_tsv),
    "csv": Reader(separated.csv_pieces, separated.read_csv),
    "jsonl": Reader(lambda source: lines.pieces(source.files["data"], "data"), json_files.read_json_lines),
    "json": Reader(lambda source: lines.whole_files(source.files["data"], "data"), json_files.read_json),
    "yfcc": Reader(yfcc.pieces, yfcc.read),
    "visual_genome": Reader(visual_genome.pieces, visual_genome.read),
}


def pieces(source: Source) -> list[Piece]:
    """The bounded pieces of a source, from file sizes and parquet footers alone; an empty one for empty files."""
    found = list(READERS[source.format].pieces(source))
    if found:
        return found
    return [Piece(role=role, file=0, start=0, stop=0) for role in sorted(source.files) if source.files[role]][:1]


def piece_file(source: Source, piece: Piece) -> SourceFile:
    """The file that a piece is of."""
    return source.files[piece.role][piece.file]


def read(source: Source, piece: Piece) -> Iterator[Batch]:
    """The rows of a piece, in batches.

    Raises:
        BrokenFile: the file cannot be read to its end.
        UnitError: it is gone, may not be read, or lacks what the format needs; naming the file.
    """
    url = piece_file(source, piece).url
    if piece.start == piece.stop:
        return
    try:
        yield from READERS[source.format].read(source, piece)
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise UnitError(f"{url}: {error.strerror or error}") from error
