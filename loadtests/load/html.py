"""The report as one HTML file without anything from outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from load.plots import Chart
from load.sections import Section

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --paper: #fff; --line: #d5dbe3; --bad: #b3261e; --good: #1b6e3c; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #dde3ea; --paper: #14181d; --line: #39424d; --bad: #ff8a80; --good: #7bd59b; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 76rem;
  margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .6rem; text-align: left; vertical-align: top; }
.bad { color: var(--bad); font-weight: 600; } .good { color: var(--good); }
.charts { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; flex: 1 1 30rem; max-width: 45rem; } figcaption { font-weight: 600; }
svg { width: 100%; height: auto; } svg text { fill: currentColor; font-size: 11px; }
.grid { stroke: var(--line); } .mark { fill: #d9822b; opacity: .25; } .bar { fill: #3f7fbf; }
polyline { fill: none; stroke-width: 1.6; }
.s0 { stroke: #3f7fbf; } .s1 { stroke: #d9822b; } .s2 { stroke: #b04a8b; } .s3 { stroke: #4f9d69; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 0 1rem; padding: 0; margin: .2rem 0; font-size: 12px; }
.k0::before, .k1::before, .k2::before, .k3::before { content: "— "; font-weight: 700; }
.k0::before { color: #3f7fbf; } .k1::before { color: #d9822b; }
.k2::before { color: #b04a8b; } .k3::before { color: #4f9d69; }
"""


def page(title: str, setup: Mapping[str, str], sections: Sequence[Section]) -> str:
    """The whole file."""
    plain = {name: value.replace("`", "") for name, value in setup.items()}
    facts = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in plain.items())
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<style>{_STYLE}</style></head><body><h1>{escape(title)}</h1><div class="scroll"><table>{facts}</table></div>'
        + "".join(map(_section, sections))
        + "</body></html>\n"
    )


def _section(section: Section) -> str:
    tables = "".join(_table(header, rows) for header, rows in section.tables())
    return f"<h2>{escape(section.title)}</h2><p>{escape(section.text)}</p>{tables}{_charts(section.charts)}"


def _charts(charts: Sequence[Chart]) -> str:
    return f'<div class="charts">{"".join(chart.svg() for chart in charts)}</div>' if charts else ""


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(text: str) -> str:
    kind = {"FAILS": ' class="bad"', "holds": ' class="good"'}.get(text, "")
    return f"<td{kind}>{escape(text)}</td>"
