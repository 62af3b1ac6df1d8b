"""Engine: are the replicas up, how full are they, and do experts stay in their slots."""

from boards.panels import GREEN, RED, bars, dashboard, graph, pick, stat, states, table

ENGINE = 'instance=~"$engine"'
NEEDS = "From the engine's own metrics, which Prometheus must scrape too."


def of(metric: str, by: str = "instance", more: str = "") -> str:
    """How much one of the engine's own counters grows in a second."""
    return f"sum by ({by}) (rate({metric}{{{ENGINE}{more}}}[$__rate_interval]))"


def p95(histogram: str) -> str:
    """A quantile of one of the engine's own histograms."""
    return f"histogram_quantile(0.95, {of(histogram + '_bucket', 'le, instance')})"


REPLICAS = [
    stat(
        "Replicas up",
        "Share of engine replicas that take requests.",
        "percentunit",
        f"avg({pick('moergate_engine_up')})",
        warn=1,
        bad=0.5,
    ),
    stat(
        "Restarts",
        "Starts of the gateways' own engines after the first, in the shown time.",
        "none",
        f"sum(increase({pick('moergate_engine_restarts_total')}[$__range]))",
        warn=1,
        bad=3,
    ),
    stat(
        "In the batch", "Requests in the replicas' batches.", "none", f"sum({pick('moergate_engine_requests_running')})"
    ),
    stat(
        "Waiting in engines",
        "Requests in the replicas' own queues.",
        "none",
        f"sum({pick('moergate_engine_requests_waiting')})",
        warn=10,
        bad=100,
    ),
    stat(
        "Resident experts",
        "Experts in slots, over all replicas.",
        "none",
        f"sum({pick('moergate_engine_experts_resident')})",
    ),
    stat(
        "Time spent on loading",
        f"Share of the time that workers spend on bringing experts into slots. {NEEDS}",
        "percentunit",
        f"max({of('moergate_expert_load_seconds_total')})",
        warn=0.05,
        bad=0.2,
    ),
]

LOAD = [
    states(
        "Up",
        "Whether a replica takes requests, as its gateway sees it.",
        (f"min by (replica, instance) ({pick('moergate_engine_up')})", "{{instance}} {{replica}}"),
        {0: ("down", RED), 1: ("up", GREEN)},
    ),
    graph(
        "Running and waiting",
        "Requests in a replica's batch, and in its queue.",
        "none",
        (f"max by (replica) ({pick('moergate_engine_requests_running')})", "{{replica}} running"),
        (f"max by (replica) ({pick('moergate_engine_requests_waiting')})", "{{replica}} waiting"),
    ),
    graph(
        "Why requests wait",
        f"capacity: batch or key-value cache is full; deferred: among others, experts have no slot yet. {NEEDS}",
        "none",
        (f"sum by (instance, reason) (vllm:num_requests_waiting_by_reason{{{ENGINE}}})", "{{instance}} {{reason}}"),
    ),
]

RESIDENCY = [
    graph(
        "Experts resident",
        "Experts that have a slot, by replica.",
        "none",
        (f"max by (replica) ({pick('moergate_engine_experts_resident')})", "{{replica}}"),
    ),
    graph(
        "Found and brought in",
        "Times a second that a step found an expert in its slot, that one was brought in (from disk or memory), and "
        f"lost its slot. {NEEDS}",
        "ops",
        (of("moergate_expert_slot_hits_total"), "{{instance}} found"),
        (of("moergate_expert_loads_total", "instance, source"), "{{instance}} from {{source}}"),
        (of("moergate_expert_evictions_total"), "{{instance}} lost"),
    ),
    graph(
        "Time for bringing one in",
        f"Mean, and the part of it for packing. {NEEDS}",
        "s",
        (f"{of('moergate_expert_load_seconds_total')} / ({of('moergate_expert_loads_total')} > 0)", "{{instance}}"),
        (
            f"{of('moergate_expert_activate_seconds_total')} / ({of('moergate_expert_loads_total')} > 0)",
            "{{instance}} packing",
        ),
    ),
    table(
        "Resident now",
        f"Versions of experts that have a slot. {NEEDS}",
        "expert",
        ("Engines", "none", f"count by (expert) (moergate_expert_resident{{{ENGINE}}})"),
    ),
]

VLLM = [
    graph(
        "Tokens",
        f"Tokens a second. {NEEDS}",
        "none",
        (of("vllm:prompt_tokens_total"), "{{instance}} prompt"),
        (of("vllm:generation_tokens_total"), "{{instance}} generated"),
    ),
    graph(
        "Time to first token, p95",
        f"As the engine sees it, without the gateway. {NEEDS}",
        "s",
        (p95("vllm:time_to_first_token_seconds"), "{{instance}}"),
    ),
    graph(
        "Between tokens, p95",
        f"Time from one token to the next. {NEEDS}",
        "s",
        (p95("vllm:inter_token_latency_seconds"), "{{instance}}"),
    ),
    graph(
        "Waiting in the engine, p95",
        f"Before a request's first step. {NEEDS}",
        "s",
        (p95("vllm:request_queue_time_seconds"), "{{instance}}"),
    ),
]

MEMORY = [
    graph(
        "Key-value cache",
        f"Used part. {NEEDS}",
        "percentunit",
        (f"max by (instance) (vllm:kv_cache_usage_perc{{{ENGINE}}})", "{{instance}}"),
    ),
    graph(
        "Prefix cache",
        f"Share of prompt tokens that were found in it. A conversation that changes its expert finds nothing. {NEEDS}",
        "percentunit",
        (f"{of('vllm:prefix_cache_hits_total')} / ({of('vllm:prefix_cache_queries_total')} > 0)", "{{instance}}"),
    ),
    graph(
        "Preemptions",
        f"Requests that had to give back their cache and start again, a second. {NEEDS}",
        "ops",
        (of("vllm:num_preemptions_total"), "{{instance}}"),
    ),
    bars(
        "Plugin",
        f"Engines that execute mixes and gates, with their vLLM. {NEEDS}",
        "none",
        (f"moergate_plugin_info{{{ENGINE}}}", "{{instance}} vLLM {{vllm}}"),
    ),
]

BOARD = dashboard(
    "engine",
    "Moergate: engine",
    "Are the replicas up, how full are they, and do experts stay in their slots.",
    ("instance", "engine"),
    {"Now": REPLICAS, "Load": LOAD, "Residency": RESIDENCY, "vLLM": VLLM, "Memory": MEMORY},
)
