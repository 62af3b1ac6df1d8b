"""What tests of the console share: a leaderboard, hostile text, and ways around its views."""

from __future__ import annotations

from tests.support.browser import Page
from tests.support.servers import Running

HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
NO_LOG = "Failed to load resource: the server responded with a status of 404 (Not Found)"
BOARD = {
    "about": {
        "folders": ["tasks"],
        "split": "val",
        "base": "tiny",
        "num_prompts": 7,
        "made_at": "2026-01-02T03:04:05Z",
    },
    "columns": [
        {"key": "policy", "title": "policy", "meaning": "What callers write"},
        {"key": "score", "title": "score", "meaning": "Mean score"},
    ],
    "rows": [
        {"shown": {"policy": HOSTILE, "score": "12.0"}, "values": {"policy": HOSTILE, "score": 0.12}},
        {"shown": {"policy": "auto", "score": "93.0"}, "values": {"policy": "auto", "score": 0.93}},
        {"shown": {"policy": "base", "score": ""}, "values": {"policy": "base", "score": None}},
    ],
}


def unexpected(page: Page) -> list[str]:
    """Complaints of the browser, but for the decision log of a gateway that has none."""
    return [each for each in page.console if each != NO_LOG]


async def opened(page: Page, running: Running, view: str, selector: str, num: int) -> None:
    """Open a view and wait until so many elements fit."""
    await page.open(f"{running.url}/console#{view}")
    await page.until_num(selector, num)


async def hash_to(page: Page, view: str) -> None:
    await page.js(f"location.hash = '{view}'")
    await page.until(f"!document.getElementById('view-{view}').hidden")
