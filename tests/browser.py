"""A headless Chromium for tests: a file as it looks when opened, and a page that is driven over the DevTools protocol."""

import asyncio
import json
import shutil
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_a_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
# Names lead nowhere, so that a page can load nothing from elsewhere.
OPTIONS = ["--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]


def browse(page: str, folder: Path) -> tuple[str, list[str]]:
    """Opens a page in headless Chromium without a network. Returns the page as it then is, and what the console says."""
    assert BROWSER is not None
    options = [*OPTIONS, "--enable-logging=stderr", "--virtual-time-budget=5000"]
    done = subprocess.run(
        [BROWSER, *options, f"--user-data-dir={folder / 'profile'}", "--dump-dom", f"file://{page}"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


class Tab:
    """A page in the browser.

    Attributes:
        console: what its console said, errors of its scripts and of its policy included.
        requests: the addresses that it asked for.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._number = socket, 0
        self.console: list[str] = []
        self.requests: list[str] = []

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Calls a method of the protocol; what happens meanwhile is kept."""
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            message = json.loads((await self._socket.receive(timeout=60)).data)
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]
            name, about = message.get("method", ""), message.get("params", {})
            if name == "Network.requestWillBeSent":
                self.requests.append(about["request"]["url"])
            elif name in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
                self.console.append(json.dumps(about))

    async def evaluate(self, script: str) -> Any:
        """Returns the value of an expression in the page, or of its promise."""
        result = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def wait_for(self, condition: str) -> None:
        """Waits until an expression in the page is true."""
        for _ in range(1200):
            if await self.evaluate(f"Boolean({condition})"):
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"never true: {condition}")


def drive(url: str, folder: Path, act: Callable[[Tab], Awaitable[None]], *options: str) -> Tab:
    """Opens a page, lets a function act on it, and returns the tab with what it said and asked for."""
    return asyncio.run(_drive(url, folder, act, *options))


async def _drive(url: str, folder: Path, act: Callable[[Tab], Awaitable[None]], *options: str) -> Tab:
    assert BROWSER is not None
    profile = folder / "profile"
    browser = await asyncio.create_subprocess_exec(
        BROWSER, *OPTIONS, *options, "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank",
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        port_file = profile / "DevToolsActivePort"
        while not port_file.exists() or not port_file.read_text().strip():
            await asyncio.sleep(0.05)
        port = port_file.read_text().splitlines()[0]
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json") as response:
                target = next(each for each in await response.json() if each["type"] == "page")
            async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=2**26) as socket:
                tab = Tab(socket)
                for domain in ("Page", "Runtime", "Log", "Network"):
                    await tab.call(f"{domain}.enable")
                await tab.call("Page.navigate", url=url)
                await tab.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'")
                await act(tab)
                return tab
    finally:
        browser.kill()
        await browser.wait()
