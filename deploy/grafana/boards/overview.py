"""Overview: whether the service is up, fast and correct, and what it costs."""

from boards.panels import dashboard, graph, pick, quantile, quantiles, rate, share, stat, table

DURATION = "gen_ai_server_request_duration_seconds"
TTFT = "gen_ai_server_time_to_first_token_seconds"
TPOT = "gen_ai_server_time_per_output_token_seconds"

NOW = [
    stat("Requests", "Requests ended per second.", "reqps", f"sum({rate('moergate_requests_total', 'instance')})"),
    stat(
        "Failures",
        "Share of requests that failed through no fault of the caller (5xx), over five minutes and all gateways. "
        "The objective is below 0.5 %.",
        "percentunit",
        "max(job:moergate_failures:ratio_rate5m)",
        warn=0.005,
        bad=0.03,
    ),
    stat(
        "First token, p95",
        "95 of 100 streams had their first token within this time, over the last five minutes and all gateways.",
        "s",
        "max(job:moergate_ttft_seconds:p95_rate5m)",
        warn=2,
        bad=5,
    ),
    stat(
        "Waiting",
        "Requests that wait for a slot in the gateways.",
        "none",
        f"sum({pick('moergate_requests_queued')})",
        warn=1,
        bad=50,
    ),
    stat(
        "Engines up",
        "Share of engine replicas that accept requests.",
        "percentunit",
        f"avg({pick('moergate_engine_up')})",
        warn=1,
        bad=0.5,
    ),
    stat(
        "Alerts",
        "Moergate's alerts that are firing or pending.",
        "none",
        'count(ALERTS{alertname=~"Moergate.*"}) or vector(0)',
        warn=1,
        bad=3,
    ),
    stat("Experts", "Active experts of the library.", "none", f"max({pick('moergate_library_experts')})"),
    stat(
        "Cost per hour",
        "In the currency of the configured prices.",
        "none",
        f"sum({rate('moergate_cost_total', 'instance')}) * 3600",
    ),
]

TRAFFIC = [
    graph(
        "Requests by status",
        "Requests that reached an engine and ended, by HTTP status; 499 means that the client disconnected.",
        "reqps",
        (rate("moergate_requests_total", "status"), "{{status}}"),
        stacked=True,
    ),
    graph(
        "Failures by code",
        "Requests that failed, with any status from 400, before or after they reached an engine.",
        "reqps",
        (rate("moergate_errors_total", "code, status"), "{{code}} {{status}}"),
    ),
    graph(
        "In progress and waiting",
        "Requests in progress, and requests that wait for a slot.",
        "none",
        (f"sum({pick('moergate_requests_active')})", "in progress"),
        (f"sum({pick('moergate_requests_queued')})", "waiting"),
    ),
    graph(
        "Busiest experts",
        "The ten experts with the most requests; click a line for details of the expert.",
        "reqps",
        (f"topk(10, {rate('moergate_requests_total', 'expert')})", "{{expert}}"),
        link="expert",
    ),
]

LATENCY = [
    graph("Duration", "Time from a request's arrival to the last byte of its answer.", "s", *quantiles(DURATION)),
    graph(
        "Time to first token",
        "Time from arrival to the first byte of a streamed answer.",
        "s",
        *quantiles(TTFT),
    ),
    graph("Time per output token", "After the first token, of streamed answers.", "s", *quantiles(TPOT)),
]

GATEWAY = [
    graph(
        "Time that the gateway adds, p99",
        "By phase: auth, queue (waiting for a slot), embed, route, connect (to the engine).",
        "s",
        (quantile(0.99, "moergate_overhead_seconds", "phase"), "{{phase}}"),
    ),
    graph(
        "Tokens",
        "Tokens per second, input and output.",
        "none",
        (rate("gen_ai_client_token_usage_sum", "token_type"), "{{token_type}}"),
    ),
    graph(
        "Failures against the objective",
        "Share of failed requests over windows of five minutes to six hours, over all gateways; alerts compare two.",
        "percentunit",
        *((f"max(job:moergate_failures:ratio_rate{window})", window) for window in ("5m", "30m", "1h", "6h")),
    ),
    graph(
        "Abstentions",
        "Share of decisions for no expert, by policy; click a line for details of the policy.",
        "percentunit",
        (share(rate("moergate_abstentions_total", "policy"), rate("moergate_decisions_total", "policy")), "{{policy}}"),
        link="policy",
    ),
]

ALERTS = [
    table(
        "Alerts now",
        "Each alert has a page in docs/runbooks, named in its annotation runbook.",
        "alert",
        ("Alerts", "none", 'count by (alertname, severity, alertstate) (ALERTS{alertname=~"Moergate.*"})'),
    )
]

BOARD = dashboard(
    "overview",
    "Moergate: overview",
    "Whether the service is up, fast and correct, and what it costs.",
    ("instance",),
    {"Now": NOW, "Traffic": TRAFFIC, "Latency": LATENCY, "Gateway": GATEWAY, "Alerts": ALERTS},
)
