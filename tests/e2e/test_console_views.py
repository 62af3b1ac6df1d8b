"""Each view of the console in a real browser, against a real gateway in front of a double of the engine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx

from server.engine.fake import FakeEngine
from tests.e2e.conftest import EXAMPLES, register_examples
from tests.support.adapters import make_adapter, manifest
from tests.support.browser import Browser
from tests.support.console import BOARD, HOSTILE, hash_to, opened, unexpected
from tests.support.servers import Running, running_gateway

NAMES = "#experts-table tbody button"
ROWS = (
    "Object.fromEntries([...document.querySelectorAll('#experts-table tbody tr')].map("
    "row => [row.cells[0].innerText, [...row.cells].map(cell => cell.innerText)]))"
)
MARK = (
    "(({x, y, width, height}) => [x + width / 2, y + height / 2])"
    "(document.querySelectorAll('#map-svg .point')[3].getBoundingClientRect())"
)


async def test_a_canary_is_looked_at_and_promoted(running: Running, browser: Browser, tmp_path: Path) -> None:
    async with httpx.AsyncClient(base_url=running.url, timeout=30) as http:
        old = (await http.get("/admin/adapters/sql")).json()["id"]
        body = manifest("sql", make_adapter(tmp_path / "new", seed=20), *EXAMPLES["sql"])
        body |= {"publish": {"to": "canary", "share": 0.25}}
        new = (await http.post("/admin/adapters", json=body)).json()["id"]
        for _ in range(3):
            await http.post(
                "/v1/chat/completions", json={"model": "dates", "messages": [{"role": "user", "content": "x"}]}
            )
        async with browser.page() as page:
            await opened(page, running, "experts", "#experts-table tbody tr", 3)
            shown = await page.js(ROWS)
            assert shown[new][1] == "canary, 25 %"
            dates = next(row for name, row in shown.items() if name.startswith("dates@"))
            assert dates[1:3] == ["active", "3"]
            heads = "[...document.querySelectorAll('#experts-table thead th')].map(each => each.innerText)"
            cells = dict(zip(await page.js(heads), dates, strict=True))
            assert cells["p50"].endswith("ms")
            place = list(cells).index("Resident in")
            await page.until(f"({ROWS})['{dates[0]}'][{place}] === '1 of 1'")  # the engine is asked every few seconds
            await page.js(f"[...document.querySelectorAll('{NAMES}')].find(b => b.innerText === '{new}').focus()")
            await page.key("Enter", "\r")
            await page.until("document.querySelector('#history-table tbody').rows.length > 2")
            assert "passed" in await page.text("#expert-probes")
            await page.press_named("#expert-actions button", "Change the share")
            await page.fill("#confirm-share", "12.5")
            await page.press("#confirm-yes")
            await page.until_says("#said", "13 %")
            assert (await http.get(f"/admin/adapters/{new}")).json()["share"] == 0.125
            await page.press_named(NAMES, new)
            await page.press_named("#expert-actions button", "Change the share")
            await page.fill("#confirm-share", "0")
            await page.press("#confirm-yes")
            await page.until(f"({ROWS})['{new}'][1] === 'in the shadow'")
            await page.press_named(NAMES, new)
            await page.until_says("#expert-facts", "it would keep 0 requests, gain 0 and lose 0")
            await page.press_named("#expert-actions button", "Promote")
            assert "all new conversations" in await page.text("#confirm-what")
            await page.press("#confirm-no")
            assert (await http.get(f"/admin/adapters/{new}")).json()["state"] == "canary"
            await page.press_named("#expert-actions button", "Promote")
            await page.fill("#confirm-reason", "it is better")
            await page.press("#confirm-yes")
            await page.until(f"({ROWS})['{new}'][1] === 'active' && ({ROWS})['{old}'][1] === 'draining'")
            assert (await http.get("/admin/adapters/sql")).json()["id"] == new
            audit = (await http.get("/admin/audit", params={"name": "sql"})).json()["data"]
            assert "it is better" in [entry["reason"] for entry in audit]
            await page.press_named(NAMES, new)
            await page.press_named("#expert-actions button", "Roll back")
            await page.press("#confirm-yes")
            await page.until(f"({ROWS})['{old}'][1] === 'active'")
            assert unexpected(page) == []


async def test_an_action_that_is_refused_says_why(running: Running, browser: Browser) -> None:
    async with browser.page() as page:
        await opened(page, running, "experts", "#experts-table tbody tr", 2)
        await page.press_named("#experts-table tbody button", "sql")
        await page.press_named("#expert-actions button", "Roll back")
        await page.press("#confirm-yes")
        await page.until_says("#expert .problem", "no earlier version")
        assert await page.js("document.getElementById('expert').open")


async def test_the_playground_streams_two_side_by_side_and_explains(tmp_path: Path, browser: Browser) -> None:
    engine = FakeEngine(ttft_s=0.02, tokens_per_s=200)
    async with running_gateway(tmp_path / "home", engine) as running:
        ids = await register_examples(running, tmp_path)
        async with browser.page() as page:
            await opened(page, running, "playground", "#play-models option", 4)
            await page.fill("#play-prompt", EXAMPLES["sql"][0])
            await page.fill("#play-tokens", "12")
            await page.fill("#play-right input", "dates")
            await page.press("#play-run")
            await page.until_says("#play-status", "Right: dates: done.")
            for side, recipe in (("left", ids["sql"]), ("right", ids["dates"])):
                assert "word0 word1" in await page.text(f"#play-{side} .answer")
                assert "word11" in await page.text(f"#play-{side} .answer")
                facts = await page.text(f"#play-{side} .facts")
                assert recipe in facts and "12 out" in facts and re.search(r"Tokens/s\n\d+", facts), facts
            left = await page.text("#play-left .facts")
            assert "Policy\nauto" in left and "Confidence" in left and "Overhead" in left
            why = await page.text("#play-left .why")
            assert EXAMPLES["sql"][0] in why and ids["sql"] in why
            assert await page.js("getComputedStyle(document.querySelector('#play-left .bar span')).width") != "2px"
            assert "asked for by name" in await page.text("#play-right .why")
            engine.tokens_per_s = 5.0
            await page.press("#play-run")
            await page.until_says("#play-left .answer", "word1")
            await page.press("#play-stop")
            await page.until_says("#play-status", "stopped.")
            assert await page.js("document.getElementById('play-stop').disabled")
            await page.fill("#play-left input", "nobody")
            await page.fill("#play-right input", "mix(sql*0.5,dates*0.5)")
            engine.tokens_per_s = 0.0
            await page.press("#play-run")
            await page.until_says("#play-status", "done.")
            assert "does not exist" in await page.text("#play-left .answer")
            assert "mix(" in await page.text("#play-right .facts")


async def test_the_map_shows_examples_by_keyboard_and_pointer_and_places_prompts(
    running: Running, browser: Browser
) -> None:
    async with browser.page() as page:
        await opened(page, running, "map", "#map-svg .point", 6)
        assert "6 examples of 2 experts" in await page.text("#map-about")
        look = "path => [getComputedStyle(path).fill, path.getAttribute('d')]"
        looks = f"[...document.querySelectorAll('#map-legend path')].map({look})"
        (fill, shape), (other_fill, other_shape) = await page.js(looks)
        assert fill != other_fill and shape != other_shape
        await page.js("document.getElementById('map-plane').focus()")
        seen = set()
        for key in ["ArrowRight"] * 4 + ["ArrowUp", "ArrowLeft", "ArrowDown"] * 4:
            await page.key(key)
            seen.add(await page.text("#map-shown p:last-child"))
        assert len(seen) >= 3 and seen <= {each for texts in EXAMPLES.values() for each in texts}
        where = await page.js(MARK)
        await page.call("Input.dispatchMouseEvent", type="mouseMoved", x=where[0], y=where[1])
        await page.until("document.querySelector('#map-shown strong').innerText === 'sql'")
        await page.fill("#map-prompt", EXAMPLES["dates"][1])
        await page.press("#map-form button")
        await page.until_num("#map-svg .placed", 1)
        assert (await page.text("#map-shown li")).startswith("dates (1.000)")
        await page.js("document.querySelector('#map-legend button').click()")
        assert await page.num("#map-svg .faded") == 3
        await page.js("document.getElementById('map-list').open = true")
        await page.until_num("#map-table tbody tr", 3)
        await page.key("+", "+")
        await page.press("#map-in")
        await page.press("#map-all")
        assert await page.num("#map-svg .point") == 6
        assert unexpected(page) == []


def decision(number: int, **changes: Any) -> dict[str, Any]:
    """A row of ``GET /admin/decisions``."""
    return {
        **{"number": number, "request_id": f"r{number}", "at": "2026-01-02T03:04:05.678+00:00", "key_id": "k1"},
        **{"endpoint": "/v1/chat/completions", "kind": "policy", "policy": "auto", "recipe": "sql@00000001"},
        **{"experts": ["sql@00000001"], "confidence": 0.75, "abstained": False, "status": 200, "input_tokens": 5},
        **{"output_tokens": 9, "duration_ms": 120.0, "ttft_ms": 30.0, "cost": 0.0, "prompt": None, "feedback": None},
        **changes,
    }


async def test_decisions_are_followed_filtered_and_shown_as_text(running: Running, browser: Browser) -> None:
    opinion = {"at": "2026-01-02T03:04:06Z", "rating": -1.0, "expert": "dates", "comment": HOSTILE}
    rows = [
        decision(2, prompt=HOSTILE, feedback=opinion),
        decision(1, abstained=True, recipe="base", experts=[], prompt="which owl hunts by day"),
    ]
    asked: list[str] = []

    def respond(url: str) -> tuple[int, Any] | None:
        asked.append(url)
        if "/admin/abstentions" in url:
            near = {"expert": "sql", "score": 0.2}
            group = {"size": 3, "share": 1.0, "cohesion": 0.5, "nearest": near, "prompts": [HOSTILE], "request_ids": []}
            return 200, {"object": "list", "data": [group], "advice": "You may want an expert."}
        if "before=" in url:
            return 200, {"object": "list", "data": [decision(0)], "next": None, "decision_log": "prompts"}
        return 200, {"object": "list", "data": rows, "next": 1, "decision_log": "prompts"}

    async with browser.page() as page:
        await page.answer_by(respond, "*/admin/decisions*", "*/admin/abstentions*")
        await opened(page, running, "decisions", "#decisions-table tbody tr", 2)
        shown = await page.text("#decisions-table tbody")
        assert HOSTILE in shown and "bad (-1), wanted dates" in shown and "abstained" in shown and "0.750" in shown
        rows.insert(0, decision(3, recipe="dates@00000002"))
        await page.until_num("#decisions-table tbody tr", 3)
        assert "dates@00000002" in await page.text("#decisions-table tbody tr")
        await page.press("#decisions-more")
        await page.until_num("#decisions-table tbody tr", 4)
        await page.fill("#decisions-policy", "auto")
        await page.fill("#decisions-abstained", "true")
        await page.press("#decisions-form button")
        await page.until_num("#decisions-table tbody tr", 3)
        assert any("policy=auto" in url and "abstained=true" in url for url in asked)
        await page.press("#abstentions-load")
        await page.until_num("#abstentions > li", 1)
        assert HOSTILE in await page.text("#abstentions")
        await hash_to(page, "map")
        await page.until_num("#map-svg .point", 6)
        await page.press("#map-recent")
        await page.until_num("#map-svg .recent", 2)
        assert await page.js("document.title") != "taken"
        assert page.console == []


async def test_without_a_decision_log_it_is_said(running: Running, browser: Browser) -> None:
    async with browser.page() as page:
        absent = {"error": {"message": "There is no GET", "type": "invalid_request_error", "param": None, "code": None}}
        await page.answer_by(lambda _url: (404, absent), "*/admin/decisions*")
        await opened(page, running, "decisions", "#decisions-off:not([hidden])", 1)
        assert "decision log is off" in await page.text("#decisions-off")
        asked = sum("/admin/decisions" in url for url in page.requests)
        await hash_to(page, "map")
        await page.press("#map-recent")
        await page.until_says("#map-note", "decision_log")
        assert (
            sum("/admin/decisions" in url for url in page.requests) == asked + 1
        )  # it is not asked for again and again
        assert unexpected(page) == []


async def test_the_leaderboard_sorts(running: Running, browser: Browser) -> None:
    async with httpx.AsyncClient(base_url=running.url) as http, browser.page() as page:
        await opened(page, running, "leaderboard", "#board-scroll[hidden]", 1)
        await page.until_says("#board-about", "moergate compare")
        assert (await http.put("/admin/leaderboard", json=BOARD)).status_code == 200
        await page.call("Page.reload")
        await page.until_num("#board-table tbody tr", 3)
        names = "[...document.querySelectorAll('#board-table tbody th')].map(cell => cell.innerText)"
        await page.js("document.querySelectorAll('#board-table thead button')[1].click()")
        assert await page.js(names) == ["auto", HOSTILE, "base"]
        await page.js("document.querySelectorAll('#board-table thead button')[1].click()")
        assert await page.js(names) == [HOSTILE, "auto", "base"]
        assert (
            await page.js("document.querySelectorAll('#board-table thead th')[1].getAttribute('aria-sort')")
            == "ascending"
        )
        assert "anonymous" in await page.text("#board-about")
