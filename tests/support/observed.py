"""What is deployed to observe the gateway, read from its files: panels' queries, rules, and the metrics in them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from server.telemetry.metrics import Metrics

ROOT = Path(__file__).parents[2]
DASHBOARDS = ROOT / "deploy" / "grafana" / "dashboards"
PROMETHEUS = ROOT / "deploy" / "prometheus"
ENGINE_METRICS = ROOT / "tests" / "e2e" / "data" / "engine_metrics.txt"

_PROMETHEUS_OWN = frozenset({"up", "ALERTS"})
_SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
_STRING = re.compile(r'"[^"]*"')
_SELECTOR = re.compile(r"([a-zA-Z_][\w:]*)(\{[^}]*\})?(?!\s*[\w(])")
_GROUPING = re.compile(r"\b(?:by|on|ignoring|without|group_left|group_right)\b\s*(\([^)]*\))?")
_WORDS = frozenset({"and", "or", "unless", "bool", "offset"})


@dataclass(frozen=True)
class Query:
    """One query of a panel, as it stands in the file."""

    board: str
    panel: str
    expr: str

    def __str__(self) -> str:
        return f"{self.board}: {self.panel}"


@dataclass(frozen=True)
class Rule:
    """An alert or a recording rule."""

    name: str
    expr: str
    is_alert: bool
    severity: str = ""
    annotations: dict[str, str] | None = None


def boards() -> list[dict[str, Any]]:
    """All dashboards."""
    return [json.loads(path.read_text("utf-8")) for path in sorted(DASHBOARDS.glob("*.json"))]


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    """The panels of a dashboard, without the headings of rows."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def queries() -> list[Query]:
    """Every panel's queries, and those of the dashboards' annotations."""
    found = []
    for board in boards():
        uid = board["uid"]
        found += [Query(uid, p["title"], target["expr"]) for p in panels(board) for target in p["targets"]]
        found += [Query(uid, f"annotation {each['name']}", each["expr"]) for each in board["annotations"]["list"]]
    return found


def variables() -> dict[str, str]:
    """The variables of all dashboards that ask Prometheus: name and query."""
    found = [each for board in boards() for each in board["templating"]["list"] if each["type"] == "query"]
    return {each["name"]: each["query"]["query"] for each in found}


def rules() -> list[Rule]:
    """Every rule."""
    files = [yaml.safe_load(path.read_text("utf-8")) for path in sorted((PROMETHEUS / "rules").glob("*.yml"))]
    entries = [rule for file in files for group in file["groups"] for rule in group["rules"]]
    return [
        Rule(
            rule.get("alert") or rule["record"],
            rule["expr"],
            "alert" in rule,
            rule.get("labels", {}).get("severity", ""),
            rule.get("annotations"),
        )
        for rule in entries
    ]


def selectors_of(expr: str) -> set[str]:
    """The vector selectors in an expression, each with its matchers, without ranges and offsets."""
    strings: list[str] = []

    def hide(match: re.Match[str]) -> str:
        strings.append(match[0])
        return f'"{len(strings) - 1}"'

    text = _GROUPING.sub(" ", _STRING.sub(hide, expr))
    text = re.sub(r"offset\s+\w+|\[[^\]]*\]", " ", text)
    found = {name + matchers for name, matchers in _SELECTOR.findall(text) if name not in _WORDS}
    return {re.sub(r'"(\d+)"', lambda match: strings[int(match[1])], each) for each in found}


def metrics_of(expr: str) -> set[str]:
    """The names of the metrics in an expression."""
    return {selector.partition("{")[0] for selector in selectors_of(expr)}


def known_metrics() -> dict[str, str]:
    """Every name that can be asked for, and where it comes from."""
    known = dict.fromkeys(_PROMETHEUS_OWN, "Prometheus")
    known |= {rule.name: "rules" for rule in rules() if not rule.is_alert}
    known |= dict.fromkeys(_names_in(ENGINE_METRICS.read_text("utf-8")), "engine")
    for family in Metrics(max_experts=1, prices={}).registry.collect():
        known |= {family.name + suffix: "gateway" for suffix in _SUFFIXES[family.type]}
    return known


def _names_in(text: str) -> Iterator[str]:
    for line in text.splitlines():
        if line and not line.startswith("#"):
            yield re.split(r"[{ ]", line, maxsplit=1)[0]
