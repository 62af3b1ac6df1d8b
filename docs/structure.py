"""Writes the page on the code's structure: a line for each folder, and a picture of the layers.

The lines are the packages' own docstrings; the layers are the import contracts in pyproject.toml. `docs/generate.py`
writes both files, and a test keeps them in step.
"""

from __future__ import annotations

import ast
import tomllib
from html import escape
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("server", "routers", "adapters_registry")
COLUMN, LAYER, GAP = 300, 34, 8

INTRODUCTION = """# Structure of the code

Imports point one way: `server` → `routers` → `adapters_registry`. Inside each package a folder holds one concept, and
folders form layers: a folder imports only from layers below it. Folders side by side in one layer do not import each
other. `make imports` checks this (the contracts are in `pyproject.toml`), so a new file needs a folder.

[The life of a request](life-of-a-request.md) tells what happens in which folder, step by step.

![Layers of the three packages](../images/structure.svg)
"""


def layers(package: str) -> list[list[str]]:
    """Return the layers of a package from its import contract, the top layer first; each is a list of folders."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    (contract,) = [each for each in contracts if each.get("containers") == [package]]
    return [[name.strip() for name in layer.split("|")] for layer in contract["layers"]]


def summary(folder: Path) -> str:
    """Return the first line of a package's docstring."""
    docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text("utf-8"))) or ""
    return docstring.split("\n")[0]


def page() -> str:
    """Return the page as Markdown."""
    parts = [INTRODUCTION]
    for package in PACKAGES:
        root = ROOT / package
        folders = [path for path in sorted(root.iterdir()) if (path / "__init__.py").is_file()]
        rows = [f"| `{package}/{path.name}/` | {summary(path)} |" for path in folders]
        modules = ", ".join(f"`{path.name}`" for path in sorted(root.glob("*.py")) if path.name != "__init__.py")
        parts.append(
            f"## `{package}/`\n\n{summary(root)}\n\n| folder | what it holds |\n|---|---|\n"
            + "\n".join(rows)
            + f"\n\nModules outside a folder: {modules}.\n"
        )
    return "\n".join(parts)


def picture() -> str:
    """Return the layers of the packages side by side, as SVG."""
    columns = [layers(package) for package in PACKAGES]
    height = 60 + max(map(len, columns)) * (LAYER + GAP)
    width = len(PACKAGES) * (COLUMN + 60) - 20
    shapes: list[str] = []
    for number, (package, column) in enumerate(zip(PACKAGES, columns, strict=True)):
        left = 20 + number * (COLUMN + 60)
        shapes.append(f'<text x="{left}" y="32" class="title">{package}/</text>')
        for row, folders in enumerate(column):
            top, each = 48 + row * (LAYER + GAP), (COLUMN - GAP * (len(folders) - 1)) / len(folders)
            for place, folder in enumerate(folders):
                x = left + place * (each + GAP)
                shapes.append(f'<rect x="{x:.1f}" y="{top}" width="{each:.1f}" height="{LAYER}" rx="5"/>')
                size = min(14.0, 1.6 * each / max(len(folder), 1))
                middle = f'x="{x + each / 2:.1f}" y="{top + LAYER / 2 + 5}"'
                shapes.append(f'<text {middle} class="folder" font-size="{size:.1f}">{escape(folder)}</text>')
    for number, _ in enumerate(pairwise(PACKAGES)):
        x = 20 + number * (COLUMN + 60) + COLUMN
        shapes.append(f'<path d="M{x + 8} 27 h38" marker-end="url(#head)"/>')
    return SVG.format(width=width, height=height, shapes="\n".join(shapes))


SVG = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">
<style>
rect {{ fill: #eef3fb; stroke: #4a6fa5; }}
path {{ stroke: #4a6fa5; stroke-width: 2; fill: none; }}
text {{ fill: #1d2b40; }}
.title {{ font-size: 18px; font-weight: bold; }}
.folder {{ text-anchor: middle; }}
</style>
<defs><marker id="head" markerWidth="8" markerHeight="8" refX="6" refY="4" orient="auto">
<path d="M0 0 L7 4 L0 8 z" style="fill: #4a6fa5; stroke: none"/></marker></defs>
<rect width="{width}" height="{height}" style="fill: white; stroke: none"/>
{shapes}
</svg>
"""
