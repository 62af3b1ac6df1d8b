"""Dashboards, rules and runbooks, as far as they can be checked without a Prometheus."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.telemetry.families import all_families
from tests.support.observed import (
    PROMETHEUS,
    ROOT,
    Rule,
    boards,
    known_metrics,
    metrics_of,
    panels,
    queries,
    rules,
    selectors_of,
    variables,
)

BOARDS = {board["uid"]: board for board in boards()}
ALERTS = [rule for rule in rules() if rule.is_alert]
RUNBOOKS = ROOT / "docs" / "runbooks"


def test_the_committed_dashboards_are_what_the_script_writes() -> None:
    command = [sys.executable, str(ROOT / "deploy" / "grafana" / "build.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_five_dashboards_have_stable_uids() -> None:
    names = ("engine", "experts", "overview", "routing", "tenants")
    assert sorted(BOARDS) == [f"moergate-{name}" for name in names]


@pytest.mark.parametrize("uid", BOARDS)
def test_panels_are_described_and_do_not_overlap(uid: str) -> None:
    board = BOARDS[uid]
    assert board["description"] and board["tags"] == ["moergate"]
    assert board["links"][0]["tags"] == ["moergate"] and board["links"][0]["keepTime"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + dx, place["y"] + dy) for dx in range(place["w"]) for dy in range(place["h"])}
        assert not cells & taken and place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells
    for panel in panels(board):
        assert len(panel["description"]) > 15 and panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert {source["uid"] for source in sources} == {"${datasource}"}


def test_links_between_dashboards_lead_to_one_with_that_variable() -> None:
    links = [
        link["url"]
        for board in BOARDS.values()
        for panel in panels(board)
        for link in panel["fieldConfig"]["defaults"].get("links", [])
    ]
    assert len(links) >= 3
    for url in links:
        uid, variable = re.match(r"/d/([a-z-]+)\?var-(\w+)=", url).groups()  # type: ignore[union-attr]
        assert variable in {each["name"] for each in BOARDS[uid]["templating"]["list"]}


def test_a_dashboards_queries_use_its_variables() -> None:
    for board in BOARDS.values():
        given = {each["name"] for each in board["templating"]["list"]}
        used = {
            name
            for panel in panels(board)
            for target in panel["targets"]
            for name in re.findall(r"\$(\w+)", target["expr"])
            if not name.startswith("__")
        }
        assert used == given - {"datasource"}, board["uid"]


def test_every_metric_and_label_exists() -> None:
    known = known_metrics()
    expressions = [query.expr for query in queries()] + [rule.expr for rule in rules()]
    used = {name for expr in expressions for name in metrics_of(expr)}
    assert len(expressions) > 100
    assert used <= known.keys()
    assert {re.match(r"label_values\((\w+), \w+\)", query)[1] for query in variables().values()} <= known.keys()  # type: ignore[index]
    labels = {name for family in all_families() for name in family.labels}
    labels |= {"le", "job", "instance", "source", "reason", "alertname", "alertstate", "severity"}
    for expr in expressions:
        for by in re.findall(r"\b(?:by|on|ignoring) ?\(([^)]*)\)", expr):
            assert {name.strip() for name in by.split(",")} <= labels, expr


@pytest.mark.parametrize(
    ("expr", "found"),
    [
        ('sum by (le) (rate(a_bucket{x="(by) b[5m]"}[5m])) > 0', {'a_bucket{x="(by) b[5m]"}'}),
        ("0 * sum(a:b) or vector(0) and on (job) c offset 7d == 0", {"a:b", "c"}),
        ("histogram_quantile(0.95, vllm:x_bucket) / ignoring(e) group_left sum(d{})", {"vllm:x_bucket", "d{}"}),
    ],
)
def test_selectors_are_found_in_expressions(expr: str, found: set[str]) -> None:
    assert selectors_of(expr) == found


@pytest.mark.parametrize("alert", ALERTS, ids=lambda rule: rule.name)
def test_every_alert_says_what_is_wrong_and_what_to_do(alert: Rule) -> None:
    assert alert.name.startswith("Moergate")
    assert alert.severity in ("critical", "warning", "info")
    assert alert.annotations and alert.annotations.keys() == {"summary", "description", "runbook"}
    page = ROOT / alert.annotations["runbook"]
    assert page.parent == RUNBOOKS and page.is_file()
    text = page.read_text("utf-8")
    assert text.startswith(f"# {alert.name}\n")
    for heading in ("## What it means", "## How to see it", "## What to do"):
        assert heading in text
    assert f"`severity: {alert.severity}`" in text


def test_every_runbook_has_its_alert() -> None:
    pages = {path.name for path in RUNBOOKS.glob("*.md")} - {"index.md"}
    assert pages == {Path((alert.annotations or {})["runbook"]).name for alert in ALERTS}
    index = (RUNBOOKS / "index.md").read_text("utf-8")
    assert all(f"({page})" in index for page in pages)


def test_the_page_on_dashboards_has_every_panel_and_query() -> None:
    page = (ROOT / "docs" / "reference" / "dashboards.md").read_text("utf-8")
    again = "run `python -m tests.tools.panel_data`"
    for board in BOARDS.values():
        assert all(f"| **{panel['title']}** {panel['description']} |" in page for panel in panels(board)), again
    written = page.replace("\\|", "|")
    assert all(f"`{query.expr}`" in written for query in queries() if not query.panel.startswith("annotation")), again


def test_recording_rules_are_used() -> None:
    recorded = {rule.name for rule in rules() if not rule.is_alert}
    used = {name for rule in rules() for name in metrics_of(rule.expr)}
    used |= {name for query in queries() for name in metrics_of(query.expr)}
    assert recorded <= used


def test_prometheus_loads_the_rules() -> None:
    config: dict[str, Any] = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    loaded = {path for pattern in config["rule_files"] for path in PROMETHEUS.glob(pattern)}
    assert loaded == set((PROMETHEUS / "rules").iterdir())
    assert {job["job_name"] for job in config["scrape_configs"]} == {"moergate", "vllm"}, "an alert names these"
