"""The few URLs that would hold up a chunk: left out when the others are through, and asked again at the end.

A chunk ends with its slowest URL. Tarpits, throttled hosts and retries take a minute where the rest of the chunk
takes a second, and nearly every chunk has one. In a hurry, they are left out; a later phase fetches what was
left out of many chunks together, with all patience.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Set
from typing import Any

GRACE = 1.5
"""Seconds."""
PROGRESS = 0.05
"""Share of a chunk that must come within the grace for it to go on."""


async def finished(works: Mapping[str, Coroutine[Any, Any, None]], asked: Set[str], grace: float | None) -> None:
    """Do all works at once; the first error ends them, and is raised.

    Args:
        works: by name.
        asked: names of works that may be given up, as it is at any time.
        grace: None, or seconds after each of which, if fewer than `PROGRESS` of all works came to an end, those in
            `asked` are given up.
    """
    tasks = {name: asyncio.create_task(work) for name, work in works.items()}
    pending = set(tasks.values())
    try:
        while pending:
            done, pending = await asyncio.wait(pending, timeout=grace, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                if not task.cancelled():
                    task.result()
            if grace is not None and len(done) < PROGRESS * len(tasks):
                for name in asked & tasks.keys():
                    tasks[name].cancel()
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
