"""`python -m curation.export`: tars as an image folder with `metadata.jsonl`, which diffusers and datasets load.

    python -m curation.export 'runs/mine/shards/train/*.tar' --out mine/train

Reads the tars of this project in both layouts, RS5M's, and others of images with texts, compressed or not. JPEG, PNG
and WebP files are copied as they are; other formats become PNG. What cannot be decoded is left out, counted and named.
"""

from __future__ import annotations

import argparse
import glob
import io
import json
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from curation.console import exit_code
from stages.errors import UserError
from stages.packing import ORIGINAL_EXTENSIONS
from stages.scenes.webdataset import ROLES
from stages.storage import Store, is_local

METADATA = "metadata.jsonl"
FACTS = ("source", "url", "licence")
"""Of the passport; what is not known is null."""
NAMED = 10
"""Samples left out that are named; the others are counted."""
NO_IMAGE = "no_image"

Sample = Mapping[str, bytes]
"""The members of one sample by their role: image, caption, name, json."""


def main(argv: Sequence[str] | None = None) -> int:
    """Export, and say how many samples there are."""
    parser = argparse.ArgumentParser(
        prog="python -m curation.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tars", nargs="+", help="paths or fsspec URLs, with * and braces")
    parser.add_argument("--out", metavar="FOLDER", required=True, help="a new folder or fsspec URL")
    parser.add_argument("--workers", type=int, default=4, help="tars read at once (default: 4)")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    args = parser.parse_args(argv)
    return exit_code(lambda: _run(args), debug=args.debug)


def _run(args: argparse.Namespace) -> int:
    if args.workers < 1:
        raise UserError(f"--workers is {args.workers}; accepted: 1 or more")
    done = export(args.tars, Store(args.out), args.workers)
    for line in done.named[:NAMED]:
        print(line, file=sys.stderr)
    left_out = ", ".join(f"{reason} {count}" for reason, count in sorted(done.left_out.items()))
    print(f"{done.samples:,} samples in {args.out}" + (f"; left out: {left_out}" if left_out else ""))
    return 0


@dataclass
class Exported:
    """What became of samples."""

    lines: list[str] = field(default_factory=list)
    """Of the metadata."""
    samples: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    named: list[str] = field(default_factory=list)

    def drop(self, name: str, reason: str) -> None:
        """Count a sample, or the rest of a tar, as left out."""
        self.left_out[reason] += 1
        self.named.append(f"{name}: {reason}")


def export(patterns: Sequence[str], out: Store, workers: int = 4) -> Exported:
    """Write images and, when all are there, `metadata.jsonl`: a line a sample, tars by name and samples as they lie.

    A tar's images are named `TAR/000000.jpg`; `file_name` and `text` come first in each line, as diffusers wants.

    Raises:
        UserError: no tar matches, two have one name, no sample is left, or the folder was exported to before.
    """
    tars = matching(patterns)
    if out.exists(METADATA):
        raise UserError(f"--out {out.url} holds a {METADATA} already: choose another folder")
    total = Exported()
    with ThreadPoolExecutor(workers) as pool, out.open_new(f".{METADATA}") as file:
        for done in pool.map(lambda name: _export_tar(name, tars[name], out), sorted(tars)):
            file.write("".join(done.lines).encode())
            total.samples += done.samples
            total.left_out += done.left_out
            total.named += done.named
    if not total.samples:
        out.remove(f".{METADATA}")
        raise UserError(f"{' '.join(patterns)}: none of {len(tars)} tars holds an image that can be decoded")
    out.move(f".{METADATA}", METADATA)
    return total


def matching(patterns: Sequence[str]) -> dict[str, str]:
    """The URL of each tar, by its name without `.tar`.

    Raises:
        UserError: a pattern matches nothing, or two tars have one name.
    """
    from braceexpand import braceexpand

    urls = [url for pattern in patterns for name in braceexpand(pattern) for url in _matches(name)]
    tars: dict[str, str] = {}
    for url in dict.fromkeys(urls):
        name = url.rpartition("/")[2].removesuffix(".gz").removesuffix(".tar")
        if name in tars:
            raise UserError(f"{tars[name]} and {url} have one name: export them to folders of their own")
        tars[name] = url
    return tars


def _matches(name: str) -> list[str]:
    home = Store(name.rpartition("/")[0] or ".")
    if not glob.has_magic(name):
        found = [name] if home.exists(name if "://" in name else home.full(name.rpartition("/")[2])) else []
    elif is_local(name):
        found = sorted(glob.glob(name.removeprefix("file://")))
    else:
        found = sorted(home.fs.unstrip_protocol(path) for path in home.fs.glob(name))
    if not found:
        raise UserError(f"no tar matches {name!r}: a path or fsspec URL of tars is wanted, with * or {{0..9}}")
    return found


def _export_tar(name: str, url: str, out: Store) -> Exported:
    done = Exported()
    try:
        for key, sample in samples(url):
            _export_sample(name, key, sample, out, done)
    except (tarfile.TarError, EOFError, OSError) as error:
        done.drop(f"{url} ({' '.join(str(error).split())})", "damaged_tar")
    return done


def samples(url: str) -> Iterator[tuple[str, Sample]]:
    """(key, members) of a tar's samples: neighbours of one name up to its first dot, as webdataset groups them.

    Raises:
        tarfile.TarError, EOFError, OSError: it cannot be read, or not to its end.
    """
    key, sample = "", dict[str, bytes]()
    with Store(url).open(url) as opened, tarfile.open(fileobj=opened, mode="r|*") as tar:
        for member in tar:
            folder, slash, base = member.name.rpartition("/")
            stem, _, ending = base.partition(".")
            role, data = ROLES.get(ending.lower()), tar.extractfile(member)
            if folder + slash + stem != key:
                yield from [(key, sample)] if sample else []
                key, sample = folder + slash + stem, {}
            if role and data:
                sample.setdefault(role, data.read())
    yield from [(key, sample)] if sample else []


def _export_sample(tar: str, key: str, sample: Sample, out: Store, done: Exported) -> None:
    extension, image, problem = _image(sample.get("image"))
    if problem:
        done.drop(f"{tar}/{key}", problem)
        return
    file_name = f"{tar}/{done.samples:06d}.{extension}"
    with out.open_new(file_name) as file:
        file.write(image)
    done.samples += 1
    passport = _passport(sample)
    text = sample["caption"].decode("utf-8", "replace") if "caption" in sample else passport.get("caption") or ""
    name = sample["name"].decode("utf-8", "replace") if "name" in sample else key
    line = {"file_name": file_name, "text": text, "key": name, **{fact: passport.get(fact) for fact in FACTS}}
    done.lines.append(json.dumps(line, ensure_ascii=False) + "\n")


def _image(data: bytes | None) -> tuple[str, bytes, str | None]:
    """(extension, bytes, what is wrong)."""
    from stages.images import Limits, decode, to_png

    if data is None:
        return "", b"", NO_IMAGE
    verdict, _ = decode(data, Limits(), "L", lambda size: (1, 1))
    if verdict.reason:
        return "", b"", verdict.reason
    extension = ORIGINAL_EXTENSIONS.get(str(verdict.format))
    return (extension, data, None) if extension else ("png", to_png(data), None)


def _passport(sample: Sample) -> dict[str, Any]:
    try:
        said = json.load(io.BytesIO(sample.get("json", b"{}")))
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


if __name__ == "__main__":
    sys.exit(main())
