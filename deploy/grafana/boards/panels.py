"""Queries, panels and dashboards as plain dicts, in the form that Grafana reads.

A panel has a title, a description and queries; a query is a pair of an expression and a legend. `dashboard` gives
panels their places and ids, so that the same content always makes the same file. In a query, ``$instance``,
``$policy``, ``$expert`` and ``$key`` are what the reader has picked.
"""

from __future__ import annotations

from typing import Any

Panel = dict[str, Any]
Query = tuple[str, str]

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24
GREEN, YELLOW, RED = "green", "yellow", "red"
LABELS = {
    "instance": ("Gateway", "moergate_requests_active", "instance"),
    "policy": ("Policy", "moergate_decisions_total", "policy"),
    "expert": ("Expert", "moergate_requests_total", "expert"),
    "key": ("API key", "moergate_key_requests_total", "key"),
    "engine": ("Engine", "moergate_plugin_info", "instance"),
}
"""Variables: the label that the reader sees, and the metric and label that the values come from."""


# -- queries ------------------------------------------------------------------------------------------------------


def pick(metric: str, *variables: str, only: str = "") -> str:
    """A metric, for the selected gateways and values of further variables; `only` is a matcher."""
    matchers = [f'{name}=~"${name}"' for name in ("instance", *variables)]
    return f"{metric}{{{','.join([*matchers, only] if only else matchers)}}}"


def rate(metric: str, by: str, *variables: str, only: str = "") -> str:
    """Growth of a counter per second, summed over all labels except those in `by`."""
    return f"sum by ({by}) (rate({pick(metric, *variables, only=only)}[$__rate_interval]))"


def grown(metric: str, by: str, *variables: str, only: str = "") -> str:
    """Growth of a counter in the selected time range, summed over all labels except those in `by`."""
    return f"sum by ({by}) (increase({pick(metric, *variables, only=only)}[$__range]))"


def quantile(share: float, histogram: str, by: str, *variables: str, only: str = "") -> str:
    """A quantile of a histogram."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, {rate(histogram + '_bucket', labels, *variables, only=only)})"


def quantiles(histogram: str, *variables: str) -> list[Query]:
    """Median, p95 and p99."""
    return [(quantile(q, histogram, "", *variables), name) for q, name in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))]


def share(part: str, whole: str) -> str:
    """A part of a whole: 0 where only the part is absent, nothing where the whole is absent."""
    return f"({part} or 0 * {whole}) / ({whole} > 0)"


# -- panels -------------------------------------------------------------------------------------------------------


def graph(title: str, text: str, unit: str, *queries: Query, stacked: bool = False, link: str = "") -> Panel:
    """Lines over time; a click on a line opens the dashboard of `link` for the line's value of that variable."""
    custom: dict[str, Any] = {"lineWidth": 1, "fillOpacity": 60 if stacked else 8, "showPoints": "never"}
    if stacked:
        custom["stacking"] = {"mode": "normal", "group": "A"}
    options = {
        "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return _panel("timeseries", title, text, unit, queries, options, custom=custom, links=_links(link))


def stat(title: str, text: str, unit: str, query: str, *, warn: float | None = None, bad: float | None = None) -> Panel:
    """One number with its recent values; yellow from `warn`, red from `bad` (or down to them if bad < warn)."""
    options = {"reduceOptions": {"calcs": ["lastNotNull"]}, "graphMode": "area", "colorMode": "value"}
    return _panel("stat", title, text, unit, [(query, "")], options, thresholds=_thresholds(warn, bad))


def bars(
    title: str, text: str, unit: str, query: Query, *, warn: float | None = None, bad: float | None = None
) -> Panel:
    """A horizontal bar for each present value, largest first."""
    options = {"orientation": "horizontal", "displayMode": "basic", "reduceOptions": {"calcs": ["lastNotNull"]}}
    panel = _panel("bargauge", title, text, unit, [query], options, thresholds=_thresholds(warn, bad))
    panel["targets"][0] |= {"instant": True, "range": False}
    panel["transformations"] = []
    return panel


def states(title: str, text: str, query: Query, names: dict[int, tuple[str, str]]) -> Panel:
    """Coloured bands over time, with a name and a colour for each value of a gauge."""
    options = {"showValue": "never", "mergeValues": True, "legend": {"displayMode": "list", "placement": "bottom"}}
    texts = {str(value): {"text": name, "color": colour} for value, (name, colour) in names.items()}
    panel = _panel("state-timeline", title, text, "none", [query], options)
    panel["fieldConfig"]["defaults"]["mappings"] = [{"type": "value", "options": texts}]
    return panel


def heatmap(title: str, text: str, unit: str, query: str) -> Panel:
    """The distribution of a histogram's observations over time."""
    options = {"calculate": False, "yAxis": {"unit": unit}, "color": {"mode": "scheme", "scheme": "Blues"}}
    panel = _panel("heatmap", title, text, unit, [(query, "{{le}}")], options)
    panel["targets"][0]["format"] = "heatmap"
    return panel


def table(title: str, text: str, by: str, *columns: tuple[str, str, str]) -> Panel:
    """A row for each value of the label `by`; a column is a title, a unit and a query."""
    queries = [(query, name) for name, _, query in columns]
    panel = _panel("table", title, text, "none", queries, {"showHeader": True})
    panel["targets"] = [target | {"format": "table", "instant": True, "range": False} for target in panel["targets"]]
    names = {f"Value #{target['refId']}" if len(columns) > 1 else "Value": target for target in panel["targets"]}
    panel["transformations"] = [
        {"id": "merge", "options": {}},
        {
            "id": "organize",
            "options": {
                "excludeByName": {"Time": True},
                "renameByName": {name: target["legendFormat"] for name, target in names.items()},
            },
        },
    ]
    panel["fieldConfig"]["overrides"] = [
        {"matcher": {"id": "byName", "options": name}, "properties": [{"id": "unit", "value": unit}]}
        for name, unit, _ in columns
    ]
    panel["options"]["sortBy"] = [{"displayName": columns[0][0], "desc": True}]
    panel["description"] += f" One row for each {by}."
    return panel


def _panel(
    kind: str,
    title: str,
    text: str,
    unit: str,
    queries: Any,
    options: dict[str, Any],
    *,
    custom: dict[str, Any] | None = None,
    thresholds: dict[str, Any] | None = None,
    links: list[dict[str, Any]] | None = None,
) -> Panel:
    defaults: dict[str, Any] = {"unit": unit, "min": 0}
    more = {"custom": custom, "thresholds": thresholds, "links": links}
    defaults |= {name: value for name, value in more.items() if value}
    targets = [
        {"refId": chr(ord("A") + index), "datasource": SOURCE, "expr": expression, "legendFormat": legend or "__auto"}
        for index, (expression, legend) in enumerate(queries)
    ]
    return {
        "title": title,
        "description": text,
        "type": kind,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": targets,
    }


def _thresholds(warn: float | None, bad: float | None) -> dict[str, Any]:
    if warn is None or bad is None:
        return {"mode": "absolute", "steps": [{"color": "blue", "value": None}]}
    first, second = ((GREEN, YELLOW), RED) if bad > warn else ((RED, YELLOW), GREEN)
    low, high = sorted((warn, bad))
    steps = [(first[0], None), (first[1], low), (second, high)]
    return {"mode": "absolute", "steps": [{"color": colour, "value": value} for colour, value in steps]}


def _links(variable: str) -> list[dict[str, Any]]:
    boards = {"expert": "moergate-experts", "policy": "moergate-routing", "key": "moergate-tenants"}
    if not variable:
        return []
    url = f"/d/{boards[variable]}?var-{variable}=${{__field.labels.{variable}}}&${{__url_time_range}}"
    return [{"title": f"More about this {variable}", "url": url}]


# -- dashboards ---------------------------------------------------------------------------------------------------


def dashboard(name: str, title: str, text: str, variables: tuple[str, ...], rows: dict[str, list[Panel]]) -> Panel:
    """A dashboard: rows of panels that share the width; the stable uid is ``moergate-<name>``."""
    placed: list[Panel] = []
    y = 0
    for heading, panels in rows.items():
        placed.append(
            {"type": "row", "title": heading, "collapsed": False, "panels": [], "gridPos": _place(0, y, WIDTH, 1)}
        )
        y += 1
        height = 4 if all(panel["type"] == "stat" for panel in panels) else 9
        width = WIDTH // len(panels)
        placed += [panel | {"gridPos": _place(i * width, y, width, height)} for i, panel in enumerate(panels)]
        y += height
    return {
        "uid": f"moergate-{name}",
        "title": title,
        "description": text,
        "tags": ["moergate"],
        "schemaVersion": 39,
        "version": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "editable": True,
        "graphTooltip": 1,
        "links": [
            {
                "type": "dashboards",
                "title": "Moergate",
                "tags": ["moergate"],
                "asDropdown": False,
                "includeVars": True,
                "keepTime": True,
            }
        ],
        "templating": {"list": [_source(), *(_variable(variable) for variable in variables)]},
        "annotations": {"list": [_alerts()]},
        "panels": [{"id": index, **panel} for index, panel in enumerate(placed, 1)],
    }


def _place(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def _source() -> dict[str, Any]:
    current = {"text": "Prometheus", "value": "prometheus"}
    return {"name": "datasource", "label": "Source", "type": "datasource", "query": "prometheus", "current": current}


def _variable(name: str) -> dict[str, Any]:
    label, metric, source = LABELS[name]
    query = f"label_values({metric}, {source})"
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "definition": query,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def _alerts() -> dict[str, Any]:
    return {
        "name": "Alerts",
        "datasource": SOURCE,
        "enable": True,
        "iconColor": RED,
        "expr": 'ALERTS{alertname=~"Moergate.*",alertstate="firing"}',
        "titleFormat": "{{alertname}}",
        "textFormat": "{{severity}}",
    }
