"""Alerts fire when they should and not otherwise, by promtool's own tests of rules."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.observed import PROMETHEUS, rules
from tests.support.prometheus import SKIPPED, find_program

CASES: list[dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("alerts.yml").read_text("utf-8"))
PROMTOOL = find_program("promtool")


def for_promtool(case: dict[str, Any]) -> dict[str, Any]:
    """A case as promtool reads it; alerts are asked for as the series ``ALERTS``, so that texts need no copy here."""
    expressions = list(case.get("expressions", []))
    for each in case["alerts"]:
        labels = [{"alertname": each["alert"], "alertstate": "firing"} | fired for fired in each["fires"]]
        samples = [{"labels": f"ALERTS{_written(one)}", "value": 1} for one in labels]
        expr = f'ALERTS{{alertname="{each["alert"]}",alertstate="firing"}}'
        expressions.append({"expr": expr, "eval_time": each["at"], "exp_samples": samples})
    return {
        "rule_files": [str(path) for path in sorted((PROMETHEUS / "rules").glob("*.yml"))],
        "evaluation_interval": case["interval"],
        "tests": [
            {
                "interval": case["interval"],
                "input_series": [{"series": name, "values": values} for name, values in case["series"].items()],
                "promql_expr_test": expressions,
            }
        ],
    }


def _written(labels: dict[str, str]) -> str:
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels.items()) + "}"


def test_every_alert_has_a_case_in_which_it_fires() -> None:
    firing = {each["alert"] for case in CASES for each in case["alerts"] if each["fires"]}
    assert firing == {rule.name for rule in rules() if rule.is_alert}


@pytest.mark.skipif(PROMTOOL is None, reason=SKIPPED)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_alerts_fire_when_they_should(case: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "case.yml"
    path.write_text(yaml.safe_dump(for_promtool(case)))
    done = subprocess.run([str(PROMTOOL), "test", "rules", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
