"""A real Chromium, driven over the DevTools protocol: pages to open, look into, press and type in.

Needs Chromium or Chrome on the machine; nothing is downloaded.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.waiting import eventually

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WAIT_S = 30.0
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
    *("--force-color-profile=srgb", "--remote-debugging-port=0", "about:blank"),
)

Answer = tuple[int, Any]
Respond = Callable[[str], Answer | None]


class Page:
    """One tab in a profile of its own.

    Attributes:
        console: Errors and warnings that the browser has told of this page, such as breaches of its security policy.
        requests: Addresses that it asked for.
    """

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session
        self.console: list[str] = []
        self.requests: list[str] = []
        self.respond: Respond = lambda _url: None

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command of the protocol."""
        return await self._browser.call(method, params, self._session)

    async def open(self, url: str) -> None:
        """Go to an address and wait until it is loaded."""
        await self.call("Page.navigate", url=url)
        await self.until(f"document.readyState === 'complete' && location.href.startsWith({json.dumps(url)})")

    async def js(self, expression: str) -> Any:
        """What an expression is worth in the page; promises are awaited."""
        given = {"expression": expression, "returnByValue": True, "awaitPromise": True, "userGesture": True}
        given |= {"allowUnsafeEvalBlockedByCSP": False}
        found = await self.call("Runtime.evaluate", **given)
        if "exceptionDetails" in found:
            details = found["exceptionDetails"]
            raise AssertionError(details.get("exception", {}).get("description") or details["text"])
        return found["result"].get("value")

    async def num(self, selector: str) -> int:
        """How many elements fit."""
        return int(await self.js(f"document.querySelectorAll({json.dumps(selector)}).length"))

    async def until_num(self, selector: str, num: int) -> None:
        """Wait until so many elements fit."""
        await self.until(f"document.querySelectorAll({json.dumps(selector)}).length === {num}")

    async def until_says(self, selector: str, part: str) -> None:
        """Wait until people read a text in an element."""
        element = f"document.querySelector({json.dumps(selector)})"
        await self.until(f"{element}.innerText.includes({json.dumps(part)})")

    async def until(self, expression: str) -> Any:
        """Wait until an expression holds; returns what it is worth then."""
        try:
            return await eventually(lambda: self._value_or_none(expression))
        except AssertionError as error:
            shown = await self.js("document.body.innerText.slice(0, 3000)")
            raise AssertionError(f"never: {expression}\n{self.console}\n{shown}") from error

    async def _value_or_none(self, expression: str) -> Any:
        try:
            return await self.js(expression)
        except (AssertionError, ProtocolError):  # also while the page is being left for another one
            return None

    async def text(self, selector: str) -> str:
        """What people read in an element."""
        return str(await self.js(f"document.querySelector({json.dumps(selector)}).innerText"))

    async def press(self, selector: str) -> None:
        """Click on an element."""
        await self.js(f"document.querySelector({json.dumps(selector)}).click()")

    async def press_named(self, selector: str, name: str) -> None:
        """Click on that of several elements whose text begins so."""
        found = f"[...document.querySelectorAll({json.dumps(selector)})]"
        await self.js(f"{found}.find(each => each.innerText.startsWith({json.dumps(name)})).click()")

    async def fill(self, selector: str, value: str) -> None:
        """Put a text into a field, as typing would."""
        field = f"document.querySelector({json.dumps(selector)})"
        await self.js(
            f"{field}.value = {json.dumps(value)};"
            f"['input', 'change'].forEach(kind => {field}.dispatchEvent(new Event(kind, {{bubbles: true}})))"
        )

    async def key(self, name: str, text: str = "") -> None:
        """Press and release a key where the focus is."""
        await self.call("Input.dispatchKeyEvent", type="keyDown", key=name, code=name, text=text)
        await self.call("Input.dispatchKeyEvent", type="keyUp", key=name, code=name)

    async def resize(self, width: int, height: int) -> None:
        """Make the window so large, in CSS pixels."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        await self.call("Emulation.setDeviceMetricsOverride", **metrics)

    async def prefer(self, **features: str) -> None:
        """Set media features, such as prefers_color_scheme."""
        listed = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        await self.call("Emulation.setEmulatedMedia", features=listed)

    async def picture(self, file: Path, *, whole: bool = False) -> None:
        """Write what is seen as PNG."""
        found = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(found["data"]))

    async def answer_by(self, respond: Respond, *patterns: str) -> None:
        """Answer requests whose address fits from here, where `respond` gives a status and JSON; None lets it pass."""
        self.respond = respond
        await self.call("Fetch.enable", patterns=[{"urlPattern": pattern} for pattern in patterns])

    async def on_event(self, method: str, params: dict[str, Any]) -> None:
        """What the browser tells."""
        if method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.console.append(params["entry"]["text"])
        elif method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.console.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.console.append(" ".join(str(each.get("value", each)) for each in params["args"]))
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Fetch.requestPaused":
            await self._answer(params)

    async def _answer(self, params: dict[str, Any]) -> None:
        made = self.respond(params["request"]["url"])
        if made is None:
            await self.call("Fetch.continueRequest", requestId=params["requestId"])
            return
        status, body = made
        await self.call(
            "Fetch.fulfillRequest",
            requestId=params["requestId"],
            responseCode=status,
            responseHeaders=[{"name": "content-type", "value": "application/json"}],
            body=base64.b64encode(json.dumps(body).encode()).decode(),
        )


class ProtocolError(Exception):
    """The browser refused a command."""


class Browser:
    """A running browser."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._pages: dict[str, Page] = {}
        self._events: set[asyncio.Task[None]] = set()

    async def call(self, method: str, params: dict[str, Any] | None = None, session: str = "") -> dict[str, Any]:
        """A command of the protocol; raises ProtocolError."""
        number = next(self._numbers)
        waiting = self._waiting[number] = asyncio.get_running_loop().create_future()
        message = {"id": number, "method": method, "params": params or {}}
        await self._socket.send_json(message | ({"sessionId": session} if session else {}))
        return await waiting

    async def listen(self) -> None:
        """Hand on answers and events until the browser ends."""
        async for message in self._socket:
            told = json.loads(message.data)
            if "id" in told:
                waiting = self._waiting.pop(told["id"])
                if "error" in told and not waiting.done():
                    waiting.set_exception(ProtocolError(told["error"]["message"]))
                elif not waiting.done():
                    waiting.set_result(told["result"])
            elif page := self._pages.get(told.get("sessionId", "")):
                task = asyncio.create_task(page.on_event(told["method"], told["params"]))
                self._events.add(task)
                task.add_done_callback(self._events.discard)

    @contextlib.asynccontextmanager
    async def page(self, *, scripts: bool = True, bypass_policy: bool = False) -> AsyncIterator[Page]:
        """A new tab in a new profile."""
        context = (await self.call("Target.createBrowserContext"))["browserContextId"]
        target = await self.call("Target.createTarget", {"url": "about:blank", "browserContextId": context})
        attached = {"targetId": target["targetId"], "flatten": True}
        session = (await self.call("Target.attachToTarget", attached))["sessionId"]
        page = self._pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            await page.call(f"{domain}.enable")
        await page.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        await page.call("Page.setBypassCSP", enabled=bypass_policy)
        await page.resize(1200, 850)
        try:
            yield page
        finally:
            del self._pages[session]
            await self.call("Target.disposeBrowserContext", {"browserContextId": context})


@contextlib.asynccontextmanager
async def running_browser(folder: Path) -> AsyncIterator[Browser]:
    """Start a browser with an empty profile in this folder, and end it."""
    profile = folder / "profile"
    command = [str(BROWSER), *FLAGS[:-1], f"--user-data-dir={profile}", FLAGS[-1]]
    pipe = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe, start_new_session=True)
    try:
        url = await _address(profile, process)
        async with aiohttp.ClientSession() as http, http.ws_connect(url, max_msg_size=0) as socket:
            browser = Browser(socket)
            listening = asyncio.create_task(browser.listen())
            try:
                yield browser
            finally:
                await _politely(browser.call("Browser.close"))
                listening.cancel()
                await asyncio.gather(listening, return_exceptions=True)
    finally:
        with contextlib.suppress(ProcessLookupError, TimeoutError):
            await asyncio.wait_for(process.wait(), 10)
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _address(profile: Path, process: asyncio.subprocess.Process) -> str:
    """Where the browser listens, once it does."""
    file = profile / "DevToolsActivePort"

    def lines_of_file() -> list[str]:
        assert process.returncode is None, f"the browser ended with {process.returncode}"
        lines = file.read_text().split() if file.exists() else []
        return lines if len(lines) == 2 else []

    lines = await eventually(lines_of_file, within=60)
    return f"ws://127.0.0.1:{lines[0]}{lines[1]}"


async def _politely(call: Awaitable[Any]) -> None:
    with contextlib.suppress(ProtocolError, TimeoutError, ConnectionError):
        await asyncio.wait_for(call, 5)
