"""Readers of images one already has, by the format of their source."""

from __future__ import annotations

from stages.scenes.base import Reader
from stages.scenes.bigearthnet import BigEarthNetReader
from stages.scenes.fmow import FmowReader
from stages.scenes.folder import FolderReader
from stages.scenes.webdataset import WebdatasetReader
from stages.sources import Source

READERS: dict[str, type[Reader]] = {
    "folder": FolderReader,
    "webdataset": WebdatasetReader,
    "fmow": FmowReader,
    "bigearthnet": BigEarthNetReader,
}


def reader(source: Source) -> Reader:
    """The source's reader.

    Raises:
        UserError: options that make no sense.
    """
    return READERS[source.format](source)
