"""Routing: what the policies decide, how sure they are, what that costs, and whether they still fit the traffic."""

from boards.panels import GREEN, RED, dashboard, graph, grown, heatmap, pick, quantile, rate, share, stat, states

DECISIONS = "moergate_decisions_total"
CONFIDENCE = "moergate_decision_confidence"
OVERHEAD = "moergate_overhead_seconds"
ROUTING = 'phase=~"embed|route"'
HIT = 'result="hit"'

NOW = [
    stat("Decisions", "Routing decisions a second.", "ops", f"sum({rate(DECISIONS, 'policy', 'policy')})"),
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
        "What 99 of 100 requests waited for their policy at most: the sum of both phases' p99.",
        "s",
        f"sum({quantile(0.99, OVERHEAD, 'phase', only=ROUTING)})",
        warn=0.05,
        bad=0.25,
    ),
    stat(
        "Stale policies",
        "Policies whose last fit failed, or that were fitted to another library.",
        "none",
        f"sum(max by (policy) ({pick('moergate_policy_stale', 'policy')}))",
        warn=1,
        bad=2,
    ),
    stat(
        "Strongest drift",
        "How far a policy's choices are from its data's (population stability index): 0.1 is slight, 0.25 strong.",
        "none",
        f"max({pick('moergate_policy_drift', 'policy')})",
        warn=0.1,
        bad=0.25,
    ),
]

DECIDED = [
    graph("Decisions by policy", "Decisions a second.", "ops", (rate(DECISIONS, "policy", "policy"), "{{policy}}")),
    graph(
        "Decisions by expert",
        "Decisions a second; base is abstentions. Click on a line for more about the expert.",
        "ops",
        (rate(DECISIONS, "policy, expert", "policy"), "{{policy}} {{expert}}"),
        stacked=True,
        link="expert",
    ),
    graph(
        "Abstentions",
        "Share of decisions for no expert: nobody covers the prompt, or the threshold is too strict.",
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
        "The router's confidence in its first choice: the least sure tenth of decisions is below p10.",
        "none",
        *(
            (quantile(q, CONFIDENCE, "policy", "policy"), f"{{{{policy}}}} {name}")
            for q, name in ((0.1, "p10"), (0.5, "p50"))
        ),
    ),
    heatmap(
        "Spread of confidence",
        "Decisions by confidence. Two bands far apart are good: it knows what it knows.",
        "none",
        f"sum by (le) (increase({pick(CONFIDENCE + '_bucket', 'policy')}[$__rate_interval]))",
    ),
    graph(
        "Feedback",
        "Ratings of answers by callers, a second, by policy.",
        "ops",
        (rate("moergate_feedback_total", "policy, rating", "policy"), "{{policy}} {{rating}}"),
    ),
    graph(
        "Feedback by expert",
        "Ratings in the shown time, by expert: one with many bad ones gets prompts that are not its own, or is bad.",
        "none",
        (grown("moergate_feedback_total", "expert, rating", "policy"), "{{expert}} {{rating}}"),
        link="expert",
    ),
]

PHASES = [
    graph(
        "Embedding and routing, p50",
        "Time of both phases; connect, auth and queue are on the dashboard Overview.",
        "s",
        (quantile(0.5, OVERHEAD, "phase", only=ROUTING), "{{phase}}"),
    ),
    graph(
        "Embedding and routing, p99",
        "A high p99 of embed: the embedder has more to do than its threads can.",
        "s",
        (quantile(0.99, OVERHEAD, "phase", only=ROUTING), "{{phase}}"),
    ),
    graph(
        "Embedder's cache",
        "Share of texts that had been embedded before.",
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
        "How far a policy's choices are from its data's (population stability index): 0.1 is slight, 0.25 strong.",
        "none",
        (f"max by (policy) ({pick('moergate_policy_drift', 'policy')})", "{{policy}}"),
    ),
    graph(
        "Share of experts, then and now",
        "An expert's share of the traffic beside its share of the data that the policy was fitted to.",
        "percentunit",
        (f"max by (policy, expert, of) ({pick('moergate_expert_share', 'policy')})", "{{policy}} {{expert}} {{of}}"),
    ),
    graph(
        "Confidence by expert, then and now",
        "Mean confidence of an expert's decisions, of the traffic and of the data that the policy was fitted to.",
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
        "Policies that route by an older library, because a fit failed or is too costly to be repeated by itself.",
        (f"max by (policy) ({pick('moergate_policy_stale', 'policy')})", "{{policy}}"),
        {0: ("current", GREEN), 1: ("stale", RED)},
    ),
    graph(
        "Decisions not recorded",
        "Decisions that the decision log dropped a second, as the database was too slow; answers are not affected.",
        "ops",
        (rate("moergate_decisions_dropped_total", "instance"), "{{instance}}"),
    ),
]

BOARD = dashboard(
    "routing",
    "Moergate: routing",
    "What the policies decide, how sure they are, what that costs, and whether they still fit the traffic.",
    ("instance", "policy"),
    {"Now": NOW, "Decisions": DECIDED, "Confidence and feedback": SURE, "Cost in time": PHASES, "Drift": DRIFT},
)
