"""The files a recipe's paths name: globs, lists, folders and URLs, resolved on the driver."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from typing import Any

from curation.redact import redact
from stages.errors import UserError
from stages.scenes.tree import summary
from stages.sources import SourceFile
from stages.storage import file_system, is_local, protocol, strip_protocol


def source_files(path: Any, where: str, storage_options: Mapping[str, Any]) -> tuple[SourceFile, ...]:
    """Every file that a path, a glob, a folder or a list of them names, sorted within each entry.

    Raises:
        UserError: nothing is there, or it cannot be listed.
    """
    entries = path if isinstance(path, list) else [path]
    found: dict[str, SourceFile] = {}
    for entry in entries:
        if not isinstance(entry, str) or not entry:
            raise UserError(f"{where}: a path, a glob or a list of them is wanted, found {entry!r}")
        for file in _expand(entry, where, storage_options):
            found.setdefault(file.url, file)
    if not found:
        raise UserError(f"{where}: a path, a glob or a list of them is wanted, found an empty list")
    return tuple(found.values())


def source_trees(path: Any, where: str, storage_options: Mapping[str, Any]) -> tuple[SourceFile, ...]:
    """Folders that a path, a glob or a list of them names, each as one input; files among them are themselves.

    Raises:
        UserError: nothing is there, or it cannot be listed.
    """
    found: dict[str, SourceFile] = {}
    for entry in path if isinstance(path, list) else [path]:
        if not isinstance(entry, str) or not entry:
            raise UserError(f"{where}: a folder, a glob or a list of them is wanted, found {entry!r}")
        for root in _roots(entry, where, storage_options):
            found.setdefault(root.url, root)
    if not any(root.size for root in found.values()):
        raise UserError(f"{where}: {redact(str(path))!r} holds no file")
    return tuple(found.values())


def _roots(entry: str, where: str, storage_options: Mapping[str, Any]) -> list[SourceFile]:
    if is_local(entry):
        pattern = strip_protocol(entry) if "://" in entry else os.path.expanduser(entry)
        names = sorted(map(os.path.abspath, [pattern] if os.path.exists(pattern) else glob.glob(pattern)))
        folders = [name for name in names if os.path.isdir(name)]
    else:
        filesystem, pattern = file_system(entry, storage_options), strip_protocol(entry).rstrip("/")
        try:
            names = sorted(filesystem.glob(pattern)) if glob.has_magic(pattern) else [pattern]
            folders = [f"{protocol(entry)}://{name}" for name in names if filesystem.isdir(name)]
        except Exception as error:  # every store has its own errors for "no access"
            raise UserError(f"{where}: {redact(entry)} cannot be listed: {redact(str(error))}") from error
    if len(folders) == len(names) and folders:
        return [summary(folder, storage_options) for folder in folders]
    files = list(_expand(entry, where, storage_options)) if not folders else []
    if not files:
        raise UserError(f"{where}: {redact(entry)!r} names files and folders together; name them one by one")
    return files


def _expand(entry: str, where: str, storage_options: Mapping[str, Any]) -> Sequence[SourceFile]:
    if is_local(entry):
        return _expand_local(entry, where)
    filesystem = file_system(entry, storage_options)
    path = strip_protocol(entry)
    try:
        names = filesystem.glob(path) if glob.has_magic(path) else [path]
        infos = [filesystem.info(name) for name in sorted(names)]
        infos = [
            info for top in infos for info in ([top] if top["type"] == "file" else _below(filesystem, top["name"]))
        ]
    except FileNotFoundError:
        infos = []
    except Exception as error:  # every store has its own errors for "no access"
        raise UserError(f"{where}: {redact(entry)} cannot be listed: {redact(str(error))}") from error
    if not infos:
        raise UserError(f"{where}: {redact(entry)!r} matches no file")
    return [
        SourceFile(url=f"{protocol(entry)}://{info['name']}", size=int(info["size"] or 0), version=_version(info))
        for info in infos
    ]


def _below(filesystem: Any, folder: str) -> list[dict[str, Any]]:
    return sorted(filesystem.find(folder, detail=True).values(), key=lambda info: str(info["name"]))


def _version(info: Mapping[str, Any]) -> str:
    for name in ("ETag", "etag", "LastModified", "mtime", "updated", "created"):
        if info.get(name):
            return str(info[name]).strip('"')
    return ""


def _expand_local(entry: str, where: str) -> list[SourceFile]:
    pattern = strip_protocol(entry) if "://" in entry else os.path.expanduser(entry)
    # made absolute only afterwards: the working folder's own name is no pattern
    found = [pattern] if os.path.exists(pattern) else glob.glob(pattern, recursive=True)
    if not found:
        verb = "matches no file" if glob.has_magic(pattern) else "does not exist"
        raise UserError(f"{where}: {entry!r} {verb}")
    names = sorted(map(os.path.abspath, found))
    files = [file for name in names for file in ([name] if os.path.isfile(name) else _visible_files(name))]
    if not files:
        raise UserError(f"{where}: {entry!r} holds no file")
    return [
        SourceFile(url=name, size=(status := os.stat(name)).st_size, version=str(status.st_mtime_ns)) for name in files
    ]


def _visible_files(folder: str) -> list[str]:
    """Files below a folder, without hidden ones and Spark's `_SUCCESS` kind."""
    return sorted(
        os.path.join(base, name)
        for base, _, names in os.walk(folder)
        for name in names
        if not name.startswith((".", "_"))
    )
