"""A real browser, asked through its DevTools protocol: what a page shows at a width."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *(
        "--disable-background-networking",
        "--disable-component-update",
        "--hide-scrollbars",
        "--remote-debugging-port=0",
    ),
)
PATIENCE_S = 60


class Page:
    """An open page."""

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: Any) -> None:
        self._loop, self._socket, self._numbers = loop, socket, itertools.count(1)

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """The answer of the DevTools protocol to a command."""
        return self._loop.run_until_complete(asyncio.wait_for(self._ask(method, params), PATIENCE_S))

    async def _ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": params})
        while True:
            said = await self._socket.receive_json()
            if said.get("id") == number:
                assert "error" not in said, said
                found: dict[str, Any] = said["result"]
                return found

    def value(self, expression: str) -> Any:
        """What an expression of JavaScript comes to, as a JSON value."""
        said = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")

    def resize(self, width: int, height: int) -> None:
        """Show the page on a screen of so many pixels; narrow ones count as phones."""
        size: dict[str, Any] = {"width": width, "height": height, "deviceScaleFactor": 1}
        self.ask("Emulation.setDeviceMetricsOverride", **size, mobile=width < 600)

    def picture(self) -> bytes:
        """The whole page as PNG."""
        return base64.b64decode(self.ask("Page.captureScreenshot", captureBeyondViewport=True)["data"])


@contextmanager
def opened(url: str, folder: Path) -> Iterator[Page]:
    """A page in a headless browser of its own, whose profile lies in `folder`."""
    assert CHROMIUM, "needs Chromium"
    command = [CHROMIUM, *OPTIONS, f"--user-data-dir={folder}", url]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    loop = asyncio.new_event_loop()
    try:
        yield from _connected(loop, _port(folder / "DevToolsActivePort"), url)
    finally:
        loop.close()
        process.terminate()
        process.wait()


def _port(path: Path) -> int:
    """The port that the browser chose, once it says so."""
    end = time.monotonic() + PATIENCE_S
    while not (path.exists() and path.read_text().count("\n")):
        assert time.monotonic() < end, "the browser did not start"
        time.sleep(0.05)
    return int(path.read_text().splitlines()[0])


def _connected(loop: asyncio.AbstractEventLoop, port: int, url: str) -> Iterator[Page]:
    import aiohttp

    async def connect() -> tuple[Any, Any]:
        session = aiohttp.ClientSession()
        while True:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                pages = [page for page in json.loads(await answer.text()) if page["url"] == url]
            if pages:
                return session, await session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0)
            await asyncio.sleep(0.05)

    session, socket = loop.run_until_complete(asyncio.wait_for(connect(), PATIENCE_S))
    try:
        page = Page(loop, socket)
        end = time.monotonic() + PATIENCE_S
        # A target is listed under its address while it still shows an empty document, which is "complete".
        while page.value("[document.readyState, location.href]") != ["complete", url]:
            assert time.monotonic() < end, "the page did not load"
            time.sleep(0.05)
        yield page
    finally:
        loop.run_until_complete(socket.close())
        loop.run_until_complete(session.close())
