"""Headless Chromium, driven over its own DevTools protocol: what a person sees, presses and is told.

Knows nothing of the pages. Every browser has a profile of its own, and ends with the block that opened it, or with the
process of the tests.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp

from demo.federation import leashed
from tests.programs import debian_program

FLAGS: Final = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-quic",
    "--disable-sync",
    "--hide-scrollbars",
    "--ignore-certificate-errors",
    "--remote-debugging-port=0",
)
START_SECONDS: Final = 30.0
WAIT_SECONDS: Final = 20.0
KEYS: Final = {
    "Tab": {"key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9},
    "Enter": {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"},
}


@dataclass
class Tab:
    """One page of the browser. requests: addresses asked for; complaints: errors that its console shows."""

    _socket: aiohttp.ClientWebSocketResponse
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    _waiting: dict[int, asyncio.Future[Any]] = field(default_factory=dict)
    _events: list[tuple[str, asyncio.Future[Any]]] = field(default_factory=list)
    _number: int = 0

    async def call(self, method: str, **parameters: object) -> Any:
        self._number += 1
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[self._number] = answer
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        async with asyncio.timeout(WAIT_SECONDS):
            return await answer

    async def listen(self) -> None:
        async for message in self._socket:
            content = json.loads(message.data)
            if "id" in content:
                self._answered(content)
            else:
                self._happened(content["method"], content["params"])

    def _answered(self, content: Mapping[str, Any]) -> None:
        waiting = self._waiting.pop(content["id"])
        if waiting.cancelled():
            return
        if "error" in content:
            waiting.set_exception(RuntimeError(str(content["error"])))
        else:
            waiting.set_result(content["result"])

    def _happened(self, method: str, parameters: Mapping[str, Any]) -> None:
        match method:
            case "Network.requestWillBeSent":
                self.requests.append(parameters["request"]["url"])
            case "Runtime.exceptionThrown":
                self.complaints.append(str(parameters["exceptionDetails"]))
            case "Log.entryAdded" if parameters["entry"]["level"] in ("error", "warning"):
                self.complaints.append(f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}")
            case "Runtime.consoleAPICalled" if parameters["type"] in ("error", "warning", "assert"):
                self.complaints.append(str(parameters["args"]))
        for name, waiting in [*self._events]:
            if name == method and not waiting.done():
                waiting.set_result(parameters)
                self._events.remove((name, waiting))

    async def go(self, address: str) -> None:
        """Open an address, and wait until it is loaded."""
        loaded: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._events.append(("Page.loadEventFired", loaded))
        await self.call("Page.navigate", url=address)
        async with asyncio.timeout(WAIT_SECONDS):
            await loaded

    async def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        found = await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"]))
        return found["result"].get("value")

    async def until(self, script: str, holds: Callable[[Any], bool] = bool) -> Any:
        """The value of an expression once it holds."""
        found = None
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while True:
                    with suppress(RuntimeError):  # between two documents there is none
                        found = await self.run(script)
                        if holds(found):
                            return found
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"{script} stays {found!r}") from None

    async def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            await self.call("Input.dispatchKeyEvent", type=kind, **KEYS[key])

    async def type(self, text: str) -> None:
        await self.call("Input.insertText", text=text)

    async def picture(self, path: Path, *, whole: bool = False) -> None:
        """whole: the page to its end, not only what fits the window."""
        found = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))

    async def window(self, width: int, height: int) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    async def see_as(self, deficiency: str) -> None:
        """A deficiency of colour vision: protanopia, deuteranopia, tritanopia, achromatopsia; or none."""
        await self.call("Emulation.setEmulatedVisionDeficiency", type=deficiency)

    async def printed(self) -> bytes:
        """The page as a PDF, as a printer gets it."""
        found = await self.call("Page.printToPDF", printBackground=False)
        return base64.b64decode(found["data"])

    async def prefer(self, **features: str) -> None:
        """Media features, such as prefers_color_scheme="dark"."""
        chosen = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        await self.call("Emulation.setEmulatedMedia", features=chosen)


@dataclass
class Browser:
    """A running Chromium."""

    address: str
    _session: aiohttp.ClientSession

    @asynccontextmanager
    async def tab(self) -> AsyncIterator[Tab]:
        async with self._session.put(f"{self.address}/json/new?about:blank") as answer:
            target = await answer.json()
        async with self._session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
            tab = Tab(socket)
            listening = asyncio.create_task(tab.listen())
            try:
                for domain in ("Page", "Runtime", "Network", "Log"):
                    await tab.call(f"{domain}.enable")
                yield tab
            finally:
                listening.cancel()
                await asyncio.gather(listening, return_exceptions=True)


@asynccontextmanager
async def chromium(profile: Path) -> AsyncIterator[Browser]:
    """A browser until the end of the block. profile: a folder that is not there yet. Skips where there is none."""
    program = debian_program("chromium", package="chromium")
    process = await asyncio.create_subprocess_exec(
        *leashed([str(program), *FLAGS, f"--user-data-dir={profile}", "about:blank"]),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        process_group=0,
    )
    try:
        port = await _port(profile / "DevToolsActivePort", process)
        async with aiohttp.ClientSession() as session:
            yield Browser(f"http://127.0.0.1:{port}", session)
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        with suppress(TimeoutError):
            async with asyncio.timeout(5):
                await process.wait()
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _port(file: Path, process: asyncio.subprocess.Process) -> int:
    async with asyncio.timeout(START_SECONDS):
        while True:
            if process.returncode is not None:
                raise RuntimeError(f"chromium ended with {process.returncode}")
            if file.exists() and (lines := file.read_text().splitlines()):
                return int(lines[0])
            await asyncio.sleep(0.05)
