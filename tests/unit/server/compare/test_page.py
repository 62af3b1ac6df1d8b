"""The comparison's page, opened in a real browser where there is one: what its script draws is in the document."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from server.compare.report import About, page
from server.compare.stats import compare_outcomes
from tests.unit.server.compare.test_stats import TASKS, outcomes

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ABOUT = About(("tasks",), "val", "tiny", 160, 0, leave_own_out=False, made_at="today")
HOSTILE = "</script><script>document.title='taken'</script>"
COLUMN = "[...document.querySelectorAll('#board tbody tr')].map(row => row.cells[%d].textContent)"
PRESS_SCORE = "document.querySelectorAll('#board thead button')[1].click();"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine"),
]


def asked(folder: Path, expressions: dict[str, str], *, first: str = "") -> dict[str, Any]:
    """What expressions are worth in the open page; `console` is what it complained of there."""
    renamed = [replace(each, policy=HOSTILE if each.policy == "bad" else each.policy) for each in outcomes()]
    facts = ", ".join(f"{name}: {expression}" for name, expression in expressions.items())
    report = f"<script>{first} document.body.dataset.facts = JSON.stringify({{{facts}}});</script></body>"
    file = folder / "compare.html"
    file.write_text(page(compare_outcomes(renamed), ABOUT).replace("</body>", report), encoding="utf-8")
    command = [
        *(str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *(f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", "--dump-dom", file.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<body data-facts="([^"]*)"', done.stdout)
    assert found, done.stderr
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(html.unescape(found[1])) | {"console": console}


def test_everything_is_drawn(tmp_path: Path) -> None:
    facts = asked(
        tmp_path,
        {
            "title": "document.title",
            "policies": COLUMN % 0,
            "dots": "['cost', 'latency'].map(id => document.querySelectorAll(`#${id} circle`).length)",
            "lines": "['cost', 'latency', 'coverage'].map(id => $(id).querySelector('polyline').points.length)",
            "heat": "document.querySelectorAll('#heat tbody td').length",
            "picks": "[...$('pick').options].map(option => option.text)",
            "confusion": "[...document.querySelectorAll('#confusion tbody tr')].map(row => row.cells[0].textContent)",
            "foreign": "document.querySelectorAll('script[src], link, img').length",
        },
    )
    assert facts["console"] == []
    assert facts["title"] == "Moergate: policies compared"
    assert sorted(facts["policies"]) == sorted(["oracle", "good", HOSTILE, "base"])
    assert facts["picks"] == facts["policies"]
    assert facts["dots"] == [4, 4]
    assert min(facts["lines"]) >= 1
    assert facts["heat"] == 4 * (1 + 3)  # four policies; three of the tasks have scores
    assert set(facts["confusion"]) == set(TASKS)
    assert facts["foreign"] == 0


@pytest.mark.parametrize(("presses", "rising"), [(1, False), (2, True)])
def test_columns_sort_both_ways(tmp_path: Path, presses: int, rising: bool) -> None:
    facts = asked(tmp_path, {"scores": COLUMN % 1}, first=PRESS_SCORE * presses)
    scores = [float(cell.split()[0]) for cell in facts["scores"]]
    assert len(set(scores)) > 2
    assert scores == sorted(scores, reverse=not rising)


def test_another_policy_can_be_looked_at_closely(tmp_path: Path) -> None:
    pick = "$('pick').value = '%s'; $('pick').dispatchEvent(new Event('change'));"
    shown = {"where": "$('confusion').tHead.textContent"}
    assert asked(tmp_path, shown, first=pick % "base") == {"where": "taskbase", "console": []}
