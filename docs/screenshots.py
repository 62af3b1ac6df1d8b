"""Writes docs/images: the console of a real gateway with the demo library and its sentence embedder, in Chromium.

Two doubles stand for the engine, so answers are placeholders and their scores 0; routing, traffic, states and the map
are real. Run it from the repository's root: ``python docs/screenshots.py``. It takes about a minute.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import aiohttp  # noqa: E402
from PIL import Image  # noqa: E402

from server.settings import Settings  # noqa: E402
from tests.support.browser import Browser, Page, running_browser  # noqa: E402
from tests.support.processes import free_port, run_cli, serving  # noqa: E402

IMAGES = ROOT / "docs" / "images"
DEMO = ROOT / "server" / "demo_library"
CANARY = "date_iso"
NUM_REQUESTS = 160
PROMPT = "Convert 3:45 pm to 24-hour time, please."


@contextlib.contextmanager
def fake_engines(num: int) -> Iterator[list[str]]:
    """Doubles of an engine, as processes; gives their addresses."""
    ports = [free_port() for _ in range(num)]
    command = [sys.executable, "-m", "server.cli", "fake-engine", "--ttft-ms", "60", "--tokens-per-s", "90"]
    started = [subprocess.Popen([*command, "--port", str(port)], cwd=ROOT) for port in ports]  # noqa: S603
    try:
        yield [f"http://127.0.0.1:{port}" for port in ports]
    finally:
        for process in started:
            process.terminate()
            process.wait()


def prompts_of(file: str) -> list[str]:
    """The prompts of a JSON Lines file of the demo library."""
    return [json.loads(line)["prompt"] for line in (DEMO / file).read_text("utf-8").splitlines()]


async def send_traffic(http: aiohttp.ClientSession) -> None:
    """Ask what experts know and what none does, most of it of the first experts, some with a rating."""
    drawn = random.Random(7)  # noqa: S311
    known, unknown = prompts_of("held_out.jsonl"), prompts_of("out_of_scope.jsonl")
    texts = [drawn.choice(known[: len(known) // drawn.randint(1, 4)]) for _ in range(NUM_REQUESTS)]
    texts += drawn.sample(unknown, min(12, len(unknown)))
    drawn.shuffle(texts)
    few = asyncio.Semaphore(4)

    async def ask(text: str) -> None:
        messages = [{"role": "user", "content": text}]
        body = {"model": "auto", "messages": messages, "stream": True, "max_tokens": drawn.randint(4, 24)}
        body["stream_options"] = {"include_usage": True}
        async with few, http.post("/v1/chat/completions", json=body) as response:
            await response.read()
        if drawn.random() < 0.2:
            rating = {"request_id": response.headers["x-request-id"], "rating": drawn.choice(["up", "up", "down"])}
            async with http.post("/v1/feedback", json=rating) as told:
                await told.read()

    await asyncio.gather(*map(ask, texts))


def weaker_copy(folder: Path) -> Path:
    """An expert of the demo library with a smaller alpha, and so with another content."""
    shutil.copytree(DEMO / "adapters" / CANARY, folder)
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps(config | {"lora_alpha": config["lora_alpha"] - 1}))
    return folder


async def register_canary(http: aiohttp.ClientSession, adapter: Path) -> None:
    """A second version of an expert that gets a fifth of the conversations."""
    library = await asyncio.to_thread((DEMO / "library.json").read_text)
    known = next(each for each in json.loads(library) if each["name"] == CANARY)
    order = known | {"source": {"path": str(adapter)}, "publish": {"to": "canary", "share": 0.2}}
    async with http.post("/admin/adapters", json=order) as response:
        response.raise_for_status()


async def compare(url: str, folder: Path) -> None:
    """Compare two policies, and publish what comes of it; the answers of doubles are kept apart."""
    tasks = [f"--tasks=server/demo_library/{name}" for name in ("held_out.jsonl", "out_of_scope.jsonl")]
    order = {"router": "two_part", "name": "careful"}
    async with aiohttp.ClientSession(url) as http, http.post("/admin/policies", json=order) as response:
        job = (await response.json())["id"]
        while True:
            async with http.get(f"/admin/jobs/{job}") as told:
                if (await told.json())["state"] not in ("waiting", "running"):
                    break
            await asyncio.sleep(0.2)
    command = ["compare", *tasks, "--limit", "4", "--max-tokens", "8", "--out", str(folder), "--publish", "--url", url]
    done = await asyncio.to_thread(run_cli, *command)
    if done.returncode:
        raise SystemExit(done.stderr)


async def view(page: Page, name: str, ready: str) -> None:
    """Go to a view of the console and wait for an element."""
    await page.js(f"location.hash = '{name}'")
    await page.until(f"document.querySelectorAll({json.dumps(ready)}).length > 0")


async def keep(page: Page, name: str) -> None:
    """Write a picture, from the page's top."""
    await page.js("document.activeElement.blur(); scrollTo(0, 0)")
    file = IMAGES / f"console-{name}.png"
    await page.picture(file)
    few_colours = Image.open(file).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    few_colours.save(file, optimize=True)


async def take_all(browser: Browser, url: str) -> None:
    """Every view, one in the dark and one on a narrow screen."""
    async with browser.page() as page:
        await page.prefer(prefers_color_scheme="light", prefers_reduced_motion="reduce")
        await page.resize(1200, 800)
        await page.open(f"{url}/console")
        await view(page, "experts", "#experts-table tbody tr")
        await page.until(
            "[...document.querySelectorAll('#experts-table .badge')].some(b => b.innerText.includes('canary'))"
        )
        await keep(page, "experts")
        await page.press_named("#experts-table tbody button", CANARY)
        await page.until("document.querySelector('#history-table tbody').rows.length > 1")
        await keep(page, "expert")
        await page.press("#expert-close")
        await view(page, "decisions", "#decisions-table tbody tr, #decisions-off:not([hidden])")
        await page.fill("#decisions-policy", "auto")
        await page.press("#decisions-form button")
        await page.until(
            "[...document.querySelectorAll('#decisions-table td:nth-child(2)')].every(td => td.innerText === 'auto')"
        )
        await keep(page, "decisions")
        await view(page, "playground", "#play-models option")
        await page.fill("#play-prompt", PROMPT)
        await page.fill("#play-tokens", "24")
        await page.fill("#play-right input", "careful")
        await page.resize(1200, 1150)
        await page.press("#play-run")
        await page.until("document.getElementById('play-status').innerText.includes('Right: careful: done.')")
        await keep(page, "playground")
        await page.resize(1200, 950)
        await view(page, "map", "#map-svg .point")
        await page.press("#map-recent")
        await page.until("document.getElementById('map-note').innerText")
        await page.fill("#map-prompt", PROMPT)
        await page.press("#map-place")
        await page.until_num("#map-svg .placed", 1)
        await keep(page, "map")
        await page.resize(1200, 800)
        await view(page, "leaderboard", "#board-table tbody tr")
        await keep(page, "leaderboard")
        await page.prefer(prefers_color_scheme="dark")
        await page.resize(360, 780)
        await view(page, "experts", "#experts-table tbody tr")
        await keep(page, "narrow")
        if page.console:
            print("\n".join(page.console), file=sys.stderr)


async def main() -> None:
    """See the module's docstring."""
    IMAGES.mkdir(exist_ok=True)
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory() as name, fake_engines(2) as engines:
        folder, port = Path(name), free_port()
        arguments: list[Any] = [part for engine in engines for part in ("--engine-url", engine)]
        arguments += ["--library", str(DEMO / "library.json")]
        if "decision_log" in Settings.model_fields:
            arguments += ["--decision-log", "prompts"]
        with serving(folder / "home", port, *arguments) as running:
            await asyncio.to_thread(running.wait_ready, 120)
            os.environ["MOERGATE_CACHE_DIR"] = str(folder / "cache")  # of the command line from here on
            async with aiohttp.ClientSession(running.url) as http:
                await register_canary(http, weaker_copy(folder / CANARY))
                await send_traffic(http)
            await compare(running.url, folder / "compared")
            async with running_browser(folder) as browser:
                await take_all(browser, running.url)


if __name__ == "__main__":
    asyncio.run(main())
