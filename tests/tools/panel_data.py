"""Writes docs/reference/dashboards.md, every panel with its results: run ``python -m tests.tools.panel_data``."""

from __future__ import annotations

import asyncio
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import structlog

from tests.support.observed import ROOT, boards, panels
from tests.support.prometheus import SKIPPED, Prometheus, find_program
from tests.support.watched import shown, watched_gateway

PAGE = ROOT / "docs" / "reference" / "dashboards.md"
HEAD = """<!-- Written by `python -m tests.tools.panel_data` from deploy/grafana/dashboards and a run. -->
# Dashboards

Five dashboards in [`deploy/grafana`](../deploy/grafana): what each panel shows, the query behind it, and what it gave
from a real Prometheus that read a gateway, with a double of the engine, for ten seconds of mixed traffic (that of
`tests/e2e/test_prometheus.py`). The figures show that the queries work; they measure nothing. The dashboards were not
looked at in Grafana itself.
"""


def main() -> int:
    """Run the traffic and write the page; 1 without Prometheus."""
    program = find_program("prometheus")
    if program is None:
        print(SKIPPED)
        return 1
    logging.disable()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with tempfile.TemporaryDirectory() as folder:
        PAGE.write_text(asyncio.run(_page(program, Path(folder))), "utf-8")
    return 0


async def _page(program: str, folder: Path) -> str:
    async for server in watched_gateway(program, folder):
        return HEAD + "".join([_board(board, server) for board in boards()])
    raise AssertionError("nothing was watched")


def _board(board: dict[str, Any], server: Prometheus) -> str:
    text = f"\n## {board['title'].removeprefix('Moergate: ').capitalize()}\n\n{board['description']}\n\n"
    rows = ["| panel | query | data |", "|---|---|---|"]
    for panel in panels(board):
        title = f"**{panel['title']}** {panel['description']}"
        for target in panel["targets"]:
            code = target["expr"].replace("|", "\\|")
            rows.append(f"| {title} | `{code}` | {_data(target['expr'], server)} |")
            title = ""
    return text + "\n".join(rows) + "\n"


def _data(expr: str, server: Prometheus) -> str:
    values = sorted(server.values(shown(expr)))
    if not values:
        return "none here"
    if len(values) == 1:
        return f"{values[0]:.3g}"
    return f"{len(values)} series, {values[0]:.3g} to {values[-1]:.3g}"


if __name__ == "__main__":
    sys.exit(main())
