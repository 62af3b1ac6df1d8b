"""The console in a real browser: its files, key, safety and accessibility, in front of a double of the engine."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path

import httpx
import pytest

from adapters_registry.keys import new_key
from tests.e2e.conftest import EXAMPLES
from tests.support.adapters import make_adapter, manifest
from tests.support.browser import Browser
from tests.support.console import BOARD, HOSTILE, hash_to, opened, unexpected
from tests.support.servers import Running

VIEWS = ("experts", "decisions", "playground", "map", "leaderboard")


async def test_every_view_loads_without_a_complaint_and_from_here_only(running: Running, browser: Browser) -> None:
    async with browser.page() as page:
        await opened(page, running, "", "#experts-table tbody tr", 2)
        assert await page.js("document.querySelector('nav [aria-current]').textContent") == "Experts"
        for view in VIEWS[1:]:
            await hash_to(page, view)
            assert await page.js("document.activeElement.tagName") == "H1"
            assert view in (await page.js("document.title")).lower()
        await page.until_num("#map-svg .point", 6)
        assert unexpected(page) == []
        assert all(url.startswith(running.url) for url in page.requests if not url.startswith("about:"))
        for forbidden in (
            "document.body.innerHTML = '<b>x</b>'",
            "document.write('x')",
            "eval('1')",
            "new Function('1')",
        ):
            with pytest.raises(AssertionError, match=r"TypeError|EvalError"):
                await page.js(forbidden)
        assert await page.js("fetch('http://127.0.0.1:9/').then(() => 'went out', error => error.name)") == "TypeError"
        assert "violates" in page.console[-1]


async def test_headers_and_files(running: Running) -> None:
    async with httpx.AsyncClient(base_url=running.url) as http:
        page = await http.get("/console")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert page.headers["x-frame-options"] == "DENY"
        assert page.headers["x-content-type-options"] == "nosniff"
        named = re.findall(r'(?:src|href)="(console/[^"]+)"', page.text)
        assert {"console/app.js", "console/console.css", "console/icon.svg"} <= set(named)
        assert not re.search(r"<script(?![^>]*src=)|<style| style=| on[a-z]+=|https?://", page.text)
        for entry in files("server.console").iterdir():
            if entry.name.endswith((".js", ".css", ".svg")):
                asset = await http.get(f"/console/{entry.name}")
                assert asset.status_code == 200 and asset.headers["x-content-type-options"] == "nosniff"
                again = await http.get(f"/console/{entry.name}", headers={"if-none-match": asset.headers["etag"]})
                assert (again.status_code, again.content) == (304, b"")
        for absent in ("/console/nothing.js", "/console/__init__.py", "/console/index.html", "/console/..%2fapp.py"):
            assert (await http.get(absent)).status_code == 404, absent
        moved = await http.get("/console/")
        assert (moved.status_code, moved.headers["location"]) == (308, "../console")
        for data in ("/admin/overview", "/admin/map", "/admin/leaderboard"):
            assert (await http.get(data)).headers["cache-control"] == "no-store"


async def test_a_key_is_asked_for_kept_for_the_tab_and_forgotten(running: Running, browser: Browser) -> None:
    record, secret = new_key("operator", scopes={"admin", "infer"})
    weak, weak_secret = new_key("app", scopes={"infer"})
    await running.gateway.library.keys.add(record)
    await running.gateway.library.keys.add(weak)
    running.gateway.authenticator.forget()
    async with browser.page() as page:
        await opened(page, running, "experts", "#view-key:not([hidden])", 1)
        assert "No API key" in await page.text("#key-why")
        assert await page.js("document.activeElement.id") == "key"
        for wrong, said in (("nonsense", "unknown"), (weak_secret, "scope 'admin'")):
            await page.fill("#key", wrong)
            await page.press("#key-form button")
            await page.until(f"document.body.innerText.includes({json.dumps(said)})")
            if wrong is weak_secret:
                assert await page.js("document.getElementById('view-key').hidden")
                await page.press("#forget")
                await page.until("document.activeElement.id === 'key'")
        await page.fill("#key", secret)
        await page.press("#key-form button")
        await page.until_num("#experts-table tbody tr", 2)
        await page.call("Page.reload")
        await page.until_num("#experts-table tbody tr", 2)
        assert await page.js("document.cookie") == ""
        assert await page.js("localStorage.length") == 0
        assert secret not in " ".join(page.requests)
        await page.press("#forget")
        await page.until("document.activeElement.id === 'key'")
        assert await page.js("sessionStorage.length") == 0


async def test_what_is_hostile_shows_as_text(running: Running, browser: Browser, tmp_path: Path) -> None:
    async with httpx.AsyncClient(base_url=running.url, timeout=30) as http:
        body = manifest("hostile", make_adapter(tmp_path / "hostile", seed=31), HOSTILE, "another harmless prompt")
        body["card"] = {"description": HOSTILE, "tags": ["<b>bold</b>"], "owner": HOSTILE}
        made = await http.post("/admin/adapters", json=body)
        assert made.status_code == 201, made.text
        assert (await http.put("/admin/leaderboard", json=BOARD)).status_code == 200
        async with browser.page() as page:
            await opened(page, running, "experts", "#experts-table tbody tr", 3)
            await page.press_named("#experts-table tbody button", "hostile")
            await page.until_num("#expert-facts li", 2)
            assert (await page.text("#expert-facts")).count(HOSTILE) == 3 and "<b>bold</b>" in await page.text(
                "#expert-facts"
            )
            await page.press("#expert-close")
            await hash_to(page, "playground")
            await page.fill("#play-prompt", HOSTILE)
            await page.fill("#play-left input", HOSTILE)
            await page.press("#play-run")
            await page.until_says("#play-status", "Left")
            assert HOSTILE in await page.text("#play-left h2")
            await hash_to(page, "map")
            await page.fill("#map-prompt", HOSTILE)
            await page.until_num("#map-svg .point", 8)
            await page.press("#map-form button")
            await page.until_num("#map-svg .placed", 1)
            assert (await page.text("#map-shown")).count(HOSTILE) == 2
            await hash_to(page, "leaderboard")
            await page.until_num("#board-table tbody tr", 3)
            assert HOSTILE in await page.text("#board-table")
            assert await page.js("document.title") != "taken"
            assert await page.num("main img, main script") == 0
            assert [each for each in unexpected(page) if "status of 4" not in each] == []


async def test_with_scripts_blocked_it_says_what_to_do(running: Running, browser: Browser) -> None:
    async with browser.page(scripts=False) as page:
        await page.call("Page.navigate", url=f"{running.url}/console")
        await page.until("document.readyState === 'complete'")
        text = await page.text("main")
        assert "needs its script" in text and "moergate adapters list" in text
        assert await page.js("[...document.querySelectorAll('main > section')].every(each => each.hidden)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_it_is_accessible(running: Running, browser: Browser, scheme: str) -> None:
    axe = files("axe_core_python").joinpath("axe.min.js").read_text("utf-8")
    async with httpx.AsyncClient(base_url=running.url) as http:
        await http.put("/admin/leaderboard", json=BOARD)
    async with browser.page(bypass_policy=True) as page:
        await page.prefer(prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
        await opened(page, running, "experts", "#experts-table tbody tr", 2)
        await page.js(axe + "; 1")
        for view in (*VIEWS, "expert", "key"):
            if view == "expert":
                await hash_to(page, "experts")
                await page.press("#experts-table tbody button")
                await page.until("document.querySelector('#history-table tbody').rows.length")
            elif view == "key":
                await page.js("document.querySelector('dialog[open]').close()")
                await page.js("document.getElementById('view-experts').hidden = true")
                await page.js("document.getElementById('view-key').hidden = false")
            else:
                await hash_to(page, view)
            if view == "playground":
                await page.fill("#play-prompt", EXAMPLES["sql"][0])
                await page.press("#play-run")
                await page.until_says("#play-status", "done.")
            if view == "map":
                await page.until_num("#map-legend li", 2)
            found = await page.js(
                "axe.run(document, {resultTypes: ['violations']}).then(r => r.violations.map(v => "
                "`${v.id} (${v.impact}): ${v.nodes.map(n => n.target + ' ' + n.failureSummary).join('; ')}`))"
            )
            assert found == [], (view, found)
            for width in (320, 1200):
                await page.resize(width, 800)
                assert await page.js("document.documentElement.scrollWidth <= innerWidth"), (view, width)


async def test_marks_and_edges_stand_out_from_their_ground(running: Running, browser: Browser) -> None:
    names = [f"c{number}" for number in range(8)] + ["mark", "edge"]
    async with browser.page() as page:
        await opened(page, running, "experts", "#experts-table tbody tr", 2)
        for scheme in ("light", "dark"):
            await page.prefer(prefers_color_scheme=scheme)
            asked = json.dumps([*names, "page", "card"])
            style = "getComputedStyle(document.documentElement)"
            *marks, ground, card = await page.js(f"{asked}.map(name => {style}.getPropertyValue('--' + name).trim())")
            assert len(set(marks)) == len(marks)
            for name, mark in zip(names, marks, strict=True):
                assert min(contrast(mark, ground), contrast(mark, card)) >= 3, (scheme, name)


def contrast(one: str, other: str) -> float:
    """WCAG's ratio of two colours such as #1d2433."""

    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
