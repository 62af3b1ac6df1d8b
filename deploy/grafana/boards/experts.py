"""Experts: which experts are slow, failing, expensive or unused, and how new versions perform."""

from boards.panels import bars, dashboard, graph, grown, pick, quantile, rate, share, stat, table

REQUESTS = "moergate_requests_total"
DECISIONS = "moergate_decisions_total"
DURATION = "gen_ai_server_request_duration_seconds"
TTFT = "gen_ai_server_time_to_first_token_seconds"
TPOT = "gen_ai_server_time_per_output_token_seconds"
TOKENS = "gen_ai_client_token_usage_sum"
NAMED = 'expert!~"base|mix|gate|other"'
FAILED = 'status=~"5.."'
INPUT = 'token_type="input"'
OUTPUT = 'token_type="output"'
BASE = 'expert="base"'
CHOSEN = 'of="traffic"'
BY = ("policy", "expert")


def by_expert(metric: str, only: str = "") -> str:
    """A counter's rate by expert, for the selected variables."""
    return rate(metric, "expert", *BY, only=only)


NOW = [
    stat(
        "Experts in the library", "Active experts of the library.", "none", f"max({pick('moergate_library_experts')})"
    ),
    stat(
        "Experts in use",
        "Experts that answered a request alone in the selected time range. Experts that only took part in mixes or "
        "gates, or share the label other, are not counted.",
        "none",
        f"count({grown(REQUESTS, 'expert', only=NAMED)} > 0)",
    ),
    stat(
        "Experts without requests",
        "Experts of the library that answered no request alone in the selected time range; too high if the library "
        "has more experts than metrics_experts.",
        "none",
        f"max({pick('moergate_library_experts')}) - (count({grown(REQUESTS, 'expert', only=NAMED)} > 0) or vector(0))",
    ),
    stat(
        "Answered by the base",
        "Share of all requests that the base answered: the caller named it, or the router abstained.",
        "percentunit",
        share(
            f"sum({rate(REQUESTS, 'instance', only=BASE)})",
            f"sum({rate(REQUESTS, 'instance')})",
        ),
    ),
]

TRAFFIC = [
    graph("Requests", "Requests that ended, by expert.", "reqps", (by_expert(REQUESTS), "{{expert}}"), stacked=True),
    graph(
        "Share of decisions",
        "Share of the routers' decisions by expert; base stands for abstentions.",
        "percentunit",
        (
            f"{by_expert(DECISIONS)} / ignoring(expert) group_left sum({by_expert(DECISIONS)})",
            "{{expert}}",
        ),
        stacked=True,
    ),
    graph(
        "Failures",
        "Share of an expert's requests that failed with a status of 5xx.",
        "percentunit",
        (share(by_expert(REQUESTS, FAILED), by_expert(REQUESTS)), "{{expert}}"),
    ),
]

LATENCY = [
    graph(
        "Duration, p95",
        "Time from a request's arrival to the last byte of its answer.",
        "s",
        (quantile(0.95, DURATION, "expert", *BY), "{{expert}}"),
    ),
    graph(
        "Time to first token, p95",
        "Streamed answers only. An expert that is slow here but not per token waits for a slot: see Engine.",
        "s",
        (quantile(0.95, TTFT, "expert", *BY), "{{expert}}"),
    ),
    graph(
        "Time to first token, relative to all, p95",
        "An expert's p95 over the last five minutes, divided by the p95 of all requests; over all gateways.",
        "none",
        (
            "job_expert:moergate_ttft_seconds:p95_rate5m / on(job) group_left job:moergate_ttft_seconds:p95_rate5m",
            "{{expert}}",
        ),
    ),
    graph(
        "Time per output token, p50",
        "After the first token, of streamed answers.",
        "s",
        (quantile(0.5, TPOT, "expert", *BY), "{{expert}}"),
    ),
]

TOKENS_AND_COST = [
    graph("Output tokens", "Generated tokens per second.", "none", (by_expert(TOKENS, OUTPUT), "{{expert}}")),
    graph("Input tokens", "Prompt tokens per second.", "none", (by_expert(TOKENS, INPUT), "{{expert}}")),
    graph(
        "Tokens per answer",
        "Mean number of generated tokens. A jump often means a broken expert that does not stop.",
        "none",
        (
            f"{by_expert(TOKENS, OUTPUT)} / ({by_expert('gen_ai_client_token_usage_count', OUTPUT)} > 0)",
            "{{expert}}",
        ),
    ),
    graph(
        "Cost per hour",
        "In the currency of the configured prices; empty without prices.",
        "none",
        (f"{by_expert('moergate_cost_total')} * 3600", "{{expert}}"),
        stacked=True,
    ),
]

USE = [
    table(
        "Experts in the time range",
        "Sort by a column to find unused, failing or expensive experts.",
        "expert",
        ("Requests", "none", grown(REQUESTS, "expert", *BY)),
        ("Failures (5xx)", "none", f"{grown(REQUESTS, 'expert', *BY, only=FAILED)}"),
        ("Tokens", "none", grown(TOKENS, "expert", *BY)),
        ("Cost", "none", grown("moergate_cost_total", "expert", *BY)),
    ),
    bars(
        "Least chosen",
        "Share of the routers' decisions, smallest first, including experts that were never chosen.",
        "percentunit",
        (f"bottomk(15, max by (expert) ({pick('moergate_expert_share', *BY, only=CHOSEN)}))", "{{expert}}"),
    ),
    bars(
        "Least used",
        "The experts with the fewest requests in the selected time range, of those used since the gateway's start.",
        "none",
        (f"bottomk(15, {grown(REQUESTS, 'expert', *BY, only=NAMED)})", "{{expert}}"),
    ),
]

VERSIONS = [
    graph(
        "Versions by state",
        "Versions of experts in the library, by state from registered to retired or rejected.",
        "none",
        (f"max by (state) ({pick('moergate_library_versions')})", "{{state}}"),
        stacked=True,
    ),
    graph(
        "Canaries: requests",
        "Requests to experts that have a canary, by role: the version in service (active) or the new one (canary).",
        "reqps",
        (rate("moergate_canary_requests_total", "expert, role", "expert"), "{{expert}} {{role}}"),
    ),
    graph(
        "Canaries: failures",
        "Share of requests that failed with a status of 5xx; the new version should not be worse than the old one.",
        "percentunit",
        (
            share(
                rate("moergate_canary_requests_total", "expert, role", "expert", only=FAILED),
                rate("moergate_canary_requests_total", "expert, role", "expert"),
            ),
            "{{expert}} {{role}}",
        ),
    ),
    graph(
        "Probes",
        "Probes of new versions in the selected time range, by result; a version that fails its probes is rejected.",
        "none",
        (grown("moergate_expert_probes_total", "result"), "{{result}}"),
    ),
]

BOARD = dashboard(
    "experts",
    "Moergate: experts",
    "Which experts are slow, failing, expensive or unused, and how new versions perform.",
    ("instance", "policy", "expert"),
    {
        "Now": NOW,
        "Traffic": TRAFFIC,
        "Latency": LATENCY,
        "Tokens and cost": TOKENS_AND_COST,
        "Use": USE,
        "Versions": VERSIONS,
    },
)
