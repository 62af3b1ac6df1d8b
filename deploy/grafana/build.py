"""Writes the Grafana dashboards: ``python deploy/grafana/build.py``, or ``--check`` to see whether they are up to date.

What they show stands in `boards`, a module for each; what that looks like in Grafana's JSON, in `boards/panels.py`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from boards import engine, experts, overview, routing, tenants

FOLDER = Path(__file__).parent / "dashboards"
BOARDS = (overview.BOARD, experts.BOARD, routing.BOARD, engine.BOARD, tenants.BOARD)


def texts() -> dict[str, str]:
    """The files' contents by name."""
    return {f"{board['uid'].removeprefix('moergate-')}.json": json.dumps(board, indent=1) + "\n" for board in BOARDS}


def main(arguments: list[str]) -> int:
    """Write or check all files; 1 if a checked one is not what it should be."""
    wanted = texts()
    found = {path.name: path.read_text("utf-8") for path in FOLDER.glob("*.json")}
    if arguments == ["--check"]:
        wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        print("\n".join(f"{name}: run `make dashboards`" for name in wrong))
        return int(bool(wrong))
    FOLDER.mkdir(exist_ok=True)
    for name in found.keys() - wanted.keys():
        (FOLDER / name).unlink()
    for name, text in wanted.items():
        (FOLDER / name).write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
