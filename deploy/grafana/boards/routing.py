"""Routing: the policies' decisions, their confidence and cost in time, and whether they still fit the traffic."""

from boards.panels import GREEN, RED, dashboard, graph, grown, heatmap, pick, quantile, rate, share, stat, states

DECISIONS = "moergate_decisions_total"
CONFIDENCE = "moergate_decision_confidence"
OVERHEAD = "moergate_overhead_seconds"
ROUTING = 'phase=~"embed|route"'
HIT = 'result="hit"'

NOW = [
    stat("Decisions", "Routing decisions per second.", "ops", f"sum({rate(DECISIONS, 'policy', 'policy')})"),
    stat(
        "Abstentions",
        "Share of decisions for no expert; the base answered.",
        "percentunit",
        share(
            f"sum({rate('moergate_abstentions_total', 'policy', 'policy')})",
            f"sum({rate(DECISIONS, 'policy', 'policy')})",
        ),
        warn=0.3,
        bad=0.5,
    ),
    stat(
        "Embedding and routing, p99",
        "The sum of both phases' p99; 99 of 100 requests wait at most this long for each phase.",
        "s",
        f"sum({quantile(0.99, OVERHEAD, 'phase', only=ROUTING)})",
        warn=0.05,
        bad=0.25,
    ),
    stat(
        "Stale policies",
        "Policies whose last fit failed, or that were fitted to an older library.",
        "none",
        f"sum(max by (policy) ({pick('moergate_policy_stale', 'policy')}))",
        warn=1,
        bad=2,
    ),
    stat(
        "Strongest drift",
        "Population stability index between a policy's choices and its fitting data: 0.1 is slight, 0.25 strong.",
        "none",
        f"max({pick('moergate_policy_drift', 'policy')})",
        warn=0.1,
        bad=0.25,
    ),
]

DECIDED = [
    graph("Decisions by policy", "Decisions per second.", "ops", (rate(DECISIONS, "policy", "policy"), "{{policy}}")),
    graph(
        "Decisions by expert",
        "Decisions per second; base stands for abstentions. Click a line for details of the expert.",
        "ops",
        (rate(DECISIONS, "policy, expert", "policy"), "{{policy}} {{expert}}"),
        stacked=True,
        link="expert",
    ),
    graph(
        "Abstentions",
        "Share of decisions for no expert: no expert covers the prompt, or the threshold is too strict.",
        "percentunit",
        (
            share(rate("moergate_abstentions_total", "policy", "policy"), rate(DECISIONS, "policy", "policy")),
            "{{policy}}",
        ),
    ),
]

SURE = [
    graph(
        "Confidence",
        "The router's confidence in its first choice; the least confident tenth of decisions is below p10.",
        "none",
        *(
            (quantile(q, CONFIDENCE, "policy", "policy"), f"{{{{policy}}}} {name}")
            for q, name in ((0.1, "p10"), (0.5, "p50"))
        ),
    ),
    heatmap(
        "Spread of confidence",
        "Decisions by confidence. Two separate bands are good: the router tells known prompts from unknown ones.",
        "none",
        f"sum by (le) (increase({pick(CONFIDENCE + '_bucket', 'policy')}[$__rate_interval]))",
    ),
    graph(
        "Feedback",
        "Callers' ratings of answers per second, by policy.",
        "ops",
        (rate("moergate_feedback_total", "policy, rating", "policy"), "{{policy}} {{rating}}"),
    ),
    graph(
        "Feedback by expert",
        "Ratings in the time range, by expert. An expert with many bad ratings gets the wrong prompts, or is bad.",
        "none",
        (grown("moergate_feedback_total", "expert, rating", "policy"), "{{expert}} {{rating}}"),
        link="expert",
    ),
]

PHASES = [
    graph(
        "Embedding and routing, p50",
        "Time of both phases; auth, queue and connect are on the dashboard Overview.",
        "s",
        (quantile(0.5, OVERHEAD, "phase", only=ROUTING), "{{phase}}"),
    ),
    graph(
        "Embedding and routing, p99",
        "A high p99 of embed means that the embedder's threads are overloaded.",
        "s",
        (quantile(0.99, OVERHEAD, "phase", only=ROUTING), "{{phase}}"),
    ),
    graph(
        "Embedder's cache",
        "Share of texts found in the embedder's cache.",
        "percentunit",
        (
            share(
                f"sum({rate('moergate_embedder_lookups_total', 'result', only=HIT)})",
                f"sum({rate('moergate_embedder_lookups_total', 'result')})",
            ),
            "hits",
        ),
    ),
]

DRIFT = [
    graph(
        "Drift",
        "Population stability index between a policy's choices and its fitting data: 0.1 is slight, 0.25 strong.",
        "none",
        (f"max by (policy) ({pick('moergate_policy_drift', 'policy')})", "{{policy}}"),
    ),
    graph(
        "Share of experts, fitted and now",
        "An expert's share of the traffic, and its share of the data that the policy was fitted to.",
        "percentunit",
        (f"max by (policy, expert, of) ({pick('moergate_expert_share', 'policy')})", "{{policy}} {{expert}} {{of}}"),
    ),
    graph(
        "Confidence by expert, fitted and now",
        "Mean confidence of the decisions for an expert, in the traffic and in the data that the policy was fitted to.",
        "none",
        (
            f"max by (policy, expert, of) ({pick('moergate_expert_confidence', 'policy')})",
            "{{policy}} {{expert}} {{of}}",
        ),
    ),
    graph(
        "Experts not known yet",
        "Experts of the library that a policy does not know yet; above 0 while it follows the library.",
        "none",
        (f"max by (policy) ({pick('moergate_policy_missing_experts', 'policy')})", "{{policy}}"),
    ),
    states(
        "Stale",
        "Policies that route by an older library, because a fit failed or is too expensive to repeat automatically.",
        (f"max by (policy) ({pick('moergate_policy_stale', 'policy')})", "{{policy}}"),
        {0: ("current", GREEN), 1: ("stale", RED)},
    ),
    graph(
        "Decisions not recorded",
        "Decisions per second that the log dropped because the database was too slow; answers are not affected.",
        "ops",
        (rate("moergate_decisions_dropped_total", "instance"), "{{instance}}"),
    ),
]

BOARD = dashboard(
    "routing",
    "Moergate: routing",
    "The policies' decisions, their confidence and cost in time, and whether they still fit the traffic.",
    ("instance", "policy"),
    {"Now": NOW, "Decisions": DECIDED, "Confidence and feedback": SURE, "Cost in time": PHASES, "Drift": DRIFT},
)
