"""Tenants and cost: the requests, tokens, cost and refusals of each API key."""

from boards.panels import bars, dashboard, graph, grown, pick, rate, share, stat, table

REQUESTS = "moergate_key_requests_total"
LIMITED = "moergate_key_limited_total"


def by_key(metric: str, only: str = "", more: str = "") -> str:
    """A counter's rate by key, for the selected variables."""
    return rate(metric, "key" + more, "key", only=only)


NOW = [
    stat(
        "Keys in use",
        "API keys with a request in the selected time range.",
        "none",
        f"count({grown(REQUESTS, 'key', 'key')} > 0)",
    ),
    stat(
        "Cost",
        "Cost in the selected time range, in the currency of the configured prices.",
        "none",
        f"sum({grown('moergate_key_cost_total', 'key', 'key')})",
    ),
    stat(
        "Tokens",
        "Input and output tokens in the selected time range.",
        "short",
        f"sum({grown('moergate_key_tokens_total', 'key', 'key')})",
    ),
    stat(
        "Refused",
        "Share of requests that were refused because of a limit of their key.",
        "percentunit",
        share(f"sum({by_key(LIMITED)})", f"(sum({by_key(REQUESTS)}) + (sum({by_key(LIMITED)}) or vector(0)))"),
        warn=0.01,
        bad=0.1,
    ),
    stat(
        "Fullest budget",
        "Used part of the budget that is nearest to exhaustion.",
        "percentunit",
        f"max({pick('moergate_key_budget_used_ratio', 'key')})",
        warn=0.8,
        bad=0.95,
    ),
]

TRAFFIC = [
    graph("Requests", "Requests that reached an engine, by key.", "reqps", (by_key(REQUESTS), "{{key}}"), stacked=True),
    graph(
        "Failures",
        "Requests that ended with a status of 4xx or 5xx, by key.",
        "reqps",
        (by_key(REQUESTS, 'status=~"[45].."', ", status"), "{{key}} {{status}}"),
    ),
    graph(
        "Refused by limit",
        "Requests that were refused because of a limit of their key, by limit.",
        "reqps",
        (by_key(LIMITED, more=", limit"), "{{key}} {{limit}}"),
    ),
    graph(
        "Tokens",
        "Tokens per second, by key and type.",
        "none",
        (by_key("moergate_key_tokens_total", more=", type"), "{{key}} {{type}}"),
        stacked=True,
    ),
]

MONEY = [
    graph(
        "Cost per hour by key",
        "In the currency of the configured prices; empty without prices.",
        "none",
        (f"{by_key('moergate_key_cost_total')} * 3600", "{{key}}"),
        stacked=True,
    ),
    bars(
        "Budgets",
        "Used part of a key's daily and monthly budget at its newest request; keys without a budget are absent.",
        "percentunit",
        (f"max by (key, window) ({pick('moergate_key_budget_used_ratio', 'key')})", "{{key}}, {{window}}"),
        warn=0.8,
        bad=0.95,
    ),
    bars(
        "Cost by expert",
        "Cost in the selected time range, over all keys.",
        "none",
        (f"sort_desc({grown('moergate_cost_total', 'expert')})", "{{expert}}"),
    ),
    bars(
        "Cost by policy",
        "Cost in the selected time range, over all keys; none stands for requests that named an expert or the base.",
        "none",
        (f"sort_desc({grown('moergate_cost_total', 'policy')})", "{{policy}}"),
    ),
]

KEYS = [
    table(
        "Keys in the time range",
        "Keys beyond the setting metrics_experts share the row other.",
        "key",
        ("Cost", "none", grown("moergate_key_cost_total", "key", "key")),
        ("Requests", "none", grown(REQUESTS, "key", "key")),
        ("Refused", "none", grown(LIMITED, "key", "key")),
        ("Input tokens", "none", grown("moergate_key_tokens_total", "key", "key", only='type="input"')),
        ("Output tokens", "none", grown("moergate_key_tokens_total", "key", "key", only='type="output"')),
    )
]

BOARD = dashboard(
    "tenants",
    "Moergate: tenants and cost",
    "The requests, tokens, cost and refusals of each API key.",
    ("instance", "key"),
    {"Now": NOW, "Traffic": TRAFFIC, "Cost": MONEY, "Keys": KEYS},
)
