"""Folders of images, walked in one order everywhere: a folder's own files by name, then its folders by name."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stages.sources import SourceFile
from stages.storage import file_system, is_local, protocol, strip_protocol


@dataclass(frozen=True, slots=True)
class File:
    """A file of a folder."""

    name: str
    size: int
    version: str
    """Modification time (ns) of a local file, ETag of an object."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that holds files, with a path relative to the root (empty for the root itself)."""

    path: str
    files: tuple[File, ...]


def walk(root: str, options: Mapping[str, Any] | None = None) -> Iterator[Folder]:
    """Every folder below the root that holds files; hidden ones and those beginning with `_` do not count."""
    return _walk_local(strip_protocol(root), "") if is_local(root) else _walk_remote(root, options or {})


def _walk_local(root: str, path: str) -> Iterator[Folder]:
    with os.scandir(os.path.join(root, path)) as found:
        entries = sorted((entry for entry in found if _is_visible(entry.name)), key=lambda entry: entry.name)
    files = tuple(_local_file(entry) for entry in entries if entry.is_file())
    if files:
        yield Folder(path, files)
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _walk_local(root, f"{path}/{entry.name}" if path else entry.name)


def _local_file(entry: os.DirEntry[str]) -> File:
    status = entry.stat()
    return File(entry.name, status.st_size, str(status.st_mtime_ns))


def _walk_remote(root: str, options: Mapping[str, Any]) -> Iterator[Folder]:
    base = strip_protocol(root).rstrip("/")
    folders: dict[str, list[File]] = {}
    for path, info in file_system(root, options).find(base, detail=True).items():
        folder, _, name = path[len(base) + 1 :].rpartition("/")
        if all(map(_is_visible, (*filter(None, folder.split("/")), name))):
            version = str(info.get("ETag") or info.get("LastModified") or info.get("mtime") or "")
            folders.setdefault(folder, []).append(File(name, int(info["size"] or 0), version))
    for folder in sorted(folders, key=lambda path: path.split("/")):
        yield Folder(folder, tuple(sorted(folders[folder], key=lambda file: file.name)))


def _is_visible(name: str) -> bool:
    return not name.startswith((".", "_"))


def summary(root: str, options: Mapping[str, Any] | None = None) -> SourceFile:
    """A folder as one input: `size` is its number of files, `version` a digest of their names, sizes and versions."""
    digest, count = hashlib.sha256(), 0
    for folder in walk(root, options):
        count += len(folder.files)
        for file in folder.files:
            digest.update(f"{folder.path}\0{file.name}\0{file.size}\0{file.version}\n".encode("utf-8", "surrogatepass"))
    return SourceFile(url=root, size=count, version=digest.hexdigest())


def joined(*parts: str) -> str:
    """Parts of a path, without the empty ones."""
    return "/".join(part for part in parts if part)


def common_folder(roots: list[str]) -> str:
    """The folder that relative paths are relative to, when there are several roots: the deepest above them all."""
    if len(roots) == 1:
        return roots[0].rstrip("/")
    kinds = {protocol(root) for root in roots}
    if len(kinds) > 1:
        return ""
    shared = os.path.commonpath([strip_protocol(root) for root in roots])
    return shared if kinds == {"file"} else f"{kinds.pop()}://{shared}"


def relative(path: str, base: str) -> str:
    """A path below `base` without it."""
    return path[len(base) :].lstrip("/") if base and path.startswith(base) else path
