"""Fetching the chunks of one lane: an event loop, a fetcher and what earlier runs know, shared by its chunks."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from stages.base import NewFile, Workspace
from stages.blocklist import Blocklist
from stages.errors import UnitError
from stages.fetch.adopt import Adopted, Known
from stages.fetch.client import Fetcher
from stages.fetch.facts import Facts, judged
from stages.fetch.options import FetchOptions
from stages.fetch.stragglers import finished
from stages.images import EXTENSIONS, Limits, Verdict
from stages.sandbox import Sandbox
from stages.tar import TarWriter


class Lane:
    """State of one lane: `facts` does a chunk, `close` ends it.

    `buckets` and `known` are set by whoever knows what earlier runs left.
    """

    def __init__(
        self, options: FetchOptions, limits: Limits, blocklist: Blocklist, resize: Mapping[str, Any] | None
    ) -> None:
        self._options = options
        self._blocklist = blocklist
        self._resizes = resize is not None
        self._runner = asyncio.Runner()
        self._fetcher: Fetcher | None = None
        self._sandbox = Sandbox(limits, resize)
        self._asked: set[str] = set()
        """URLs of which nothing has come yet."""
        self.buckets: tuple[int, ...] = ()
        self.known = Known(adopted=Adopted(), imported={})

    def close(self) -> None:
        """Close connections and the loop, and leave the decoder."""
        if self._fetcher is not None:
            self._runner.run(self._fetcher.close())
        self._sandbox.close()
        self._runner.close()

    def facts(self, urls: Mapping[str, str], ws: Workspace, grace: float | None = None) -> dict[str, Facts]:
        """Facts of the URLs of one chunk; images go into one tar.

        Args:
            urls: canonical URL to the key that names its image.
            ws: where the tar is written.
            grace: seconds after which URLs are left out when next to none of the others came meanwhile
                (`stages.fetch.stragglers`).
        """
        with contextlib.ExitStack() as stack, _rare_collections():
            return self._runner.run(self._collect(urls, _Chunk(ws, stack), grace))

    async def _collect(self, urls: Mapping[str, str], chunk: _Chunk, grace: float | None) -> dict[str, Facts]:
        found: dict[str, Facts] = {}

        async def settle(url: str, work: Coroutine[Any, Any, Facts]) -> None:
            found[url] = self._screened(await work)
            chunk.report(found[url])

        for url in urls:
            ready = self._ready(url)
            if ready is not None:
                found[url] = self._screened(ready)
                chunk.report(found[url])
        rest = [url for url in urls if url not in found]
        for url, data in _imported(chunk.ws, rest, self.known.imported):
            await settle(url, self._import(urls[url], data, self.known.imported[url], chunk))
        works = {url: settle(url, self._fetch(url, urls[url], chunk)) for url in rest if url not in found}
        await finished(works, self._asked, grace)
        chunk.close()
        chunk.ws.refer(_referred(found.values(), self.known.adopted))
        return found

    def _ready(self, url: str) -> Facts | None:
        """Facts that need no bytes: blocked, adopted, or failed in the folder."""
        if self._blocklist.blocks_url(url):
            return Facts(reason="blocklisted")
        adopted = self.known.adopted.facts.get(url)
        if adopted is not None:
            return adopted
        entry = self.known.imported.get(url)
        if entry is not None and entry["reason"] is not None:
            return Facts(reason=entry["reason"], http_status=entry["http_status"])
        return None

    def _screened(self, facts: Facts) -> Facts:
        """Images of the blocklist lose their bytes."""
        blocked = facts.has_bytes and self._is_blocked(facts)
        return replace(facts, reason="blocklisted", image=None) if blocked else facts

    def _is_blocked(self, image: Facts | Verdict) -> bool:
        return image.sha256 in self._blocklist.sha256 or image.phash in self._blocklist.phash

    async def _import(self, name: str, data: bytes, entry: Mapping[str, Any], chunk: _Chunk) -> Facts:
        return await self._store(name, data, chunk, {"http_status": entry["http_status"]}, entry["image"])

    async def _fetch(self, url: str, name: str, chunk: _Chunk) -> Facts:
        if self._fetcher is None:
            self._fetcher = Fetcher(self._options)
        self._asked.add(url)
        try:
            await self._sandbox.room()
            fetched = await self._fetcher.fetch(url)
        finally:
            self._asked.discard(url)
        told: dict[str, Any] = {
            "http_status": fetched.http_status,
            "attempts": fetched.attempts + self.known.adopted.attempts.get(url, 0),
            "honoured": fetched.honoured,
            "fetched_at": datetime.now(UTC) if fetched.attempts else None,
        }
        if fetched.reason is not None:
            return Facts(reason=fetched.reason, **told)
        return await self._store(name, fetched.data, chunk, told)

    async def _store(
        self,
        name: str,
        data: bytes,
        chunk: _Chunk,
        told: Mapping[str, Any],
        place: Mapping[str, Any] | None = None,
    ) -> Facts:
        """Judge a body; an image is resized if asked, and lands in the tar unless it has a `place`.

        `told` is what its fetch found out.
        """
        verdict, resized = await self._sandbox.inspect(data)
        if self._resizes:
            data, place = resized, None
        if verdict.reason is None and not self._is_blocked(verdict):
            place = place or chunk.add(f"{name}.{EXTENSIONS[verdict.format or '']}", data)
            return judged(verdict, image=place, **told)
        return judged(verdict, **told)


@contextlib.contextmanager
def _rare_collections() -> Iterator[None]:
    """Thousands of tasks make Python look for cycles all the time, and there are next to none."""
    before = gc.get_threshold()
    gc.set_threshold(50_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)


class _Chunk:
    """The tar of one chunk, opened with its first image."""

    def __init__(self, ws: Workspace, stack: contextlib.ExitStack) -> None:
        self.ws = ws
        self._stack = stack
        self._file: NewFile | None = None
        self._tar: TarWriter | None = None

    def add(self, name: str, data: bytes) -> dict[str, Any]:
        """Store an image; returns its `image` column."""
        if self._file is None or self._tar is None:
            self._file = self._stack.enter_context(self.ws.create("images", ".tar", "images"))
            self._tar = TarWriter(self._file)
        self._file.rows += 1
        return {"tar": self._file.path, "offset": self._tar.add(name, data), "size": len(data)}

    def report(self, facts: Facts) -> None:
        """Tell the user about one more URL."""
        self.ws.progress(1, int(facts.has_bytes), int(not facts.has_bytes))

    def close(self) -> None:
        """Write the tar's end."""
        if self._tar is not None:
            self._tar.close()


def _imported(
    ws: Workspace, urls: Sequence[str], entries: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[str, bytes]]:
    """The bytes of URLs that an img2dataset folder holds, file by file in their order there."""
    places = sorted(
        (entries[url]["image"]["tar"], entries[url]["image"]["offset"], entries[url]["image"]["size"], url)
        for url in urls
        if url in entries
    )
    for tar in dict.fromkeys(place[0] for place in places):
        inside = [place[1:] for place in places if place[0] == tar]
        try:
            for (_, _, url), data in zip(
                inside, ws.read_ranges(tar, [(start, size) for start, size, _ in inside]), strict=True
            ):
                yield url, data
        except FileNotFoundError as error:
            raise UnitError(f"{tar} is gone, though its folder's table names it") from error


def _referred(facts: Any, adopted: Adopted) -> list[Any]:
    """The files of earlier runs that facts point at."""
    paths = sorted({fact.image["tar"] for fact in facts if fact.image is not None})
    return [adopted.files[path] for path in paths if path in adopted.files]
