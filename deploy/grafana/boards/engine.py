"""Engine: whether the replicas are up, how full they are, and whether experts stay in their slots."""

from boards.panels import GREEN, RED, bars, dashboard, graph, pick, stat, states, table

ENGINE = 'instance=~"$engine"'
NEEDS = "From the engine's own metrics, which Prometheus must also scrape."


def of(metric: str, by: str = "instance", more: str = "") -> str:
    """Growth a second of one of the engine's own counters."""
    return f"sum by ({by}) (rate({metric}{{{ENGINE}{more}}}[$__rate_interval]))"


def p95(histogram: str) -> str:
    """The 95th percentile of one of the engine's own histograms."""
    return f"histogram_quantile(0.95, {of(histogram + '_bucket', 'le, instance')})"


REPLICAS = [
    stat(
        "Replicas up",
        "Share of engine replicas that accept requests.",
        "percentunit",
        f"avg({pick('moergate_engine_up')})",
        warn=1,
        bad=0.5,
    ),
    stat(
        "Restarts",
        "Starts of the gateways' own engines after the first, in the selected time range.",
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
        "Requests in the replicas' queues.",
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
        "Time spent loading",
        f"Share of the workers' time spent loading experts into slots. {NEEDS}",
        "percentunit",
        f"max({of('moergate_expert_load_seconds_total')})",
        warn=0.05,
        bad=0.2,
    ),
]

LOAD = [
    states(
        "Up",
        "Whether a replica accepts requests, as its gateway sees it.",
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
        f"capacity: the batch or key-value cache is full; deferred: for example, the expert has no slot. {NEEDS}",
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
        "Slot hits, loads and evictions",
        "Per second: steps that found an expert in its slot, experts loaded into a slot (from disk or memory), and "
        f"experts evicted from one. {NEEDS}",
        "ops",
        (of("moergate_expert_slot_hits_total"), "{{instance}} hits"),
        (of("moergate_expert_loads_total", "instance, source"), "{{instance}} from {{source}}"),
        (of("moergate_expert_evictions_total"), "{{instance}} evictions"),
    ),
    graph(
        "Time to load an expert",
        f"Mean time, and the part of it spent packing weights. {NEEDS}",
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
        f"Tokens per second. {NEEDS}",
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
        f"Time before a request's first step. {NEEDS}",
        "s",
        (p95("vllm:request_queue_time_seconds"), "{{instance}}"),
    ),
]

MEMORY = [
    graph(
        "Key-value cache",
        f"Share of the cache in use. {NEEDS}",
        "percentunit",
        (f"max by (instance) (vllm:kv_cache_usage_perc{{{ENGINE}}})", "{{instance}}"),
    ),
    graph(
        "Prefix cache",
        f"Share of prompt tokens found in the cache. A conversation that changes its expert finds none. {NEEDS}",
        "percentunit",
        (f"{of('vllm:prefix_cache_hits_total')} / ({of('vllm:prefix_cache_queries_total')} > 0)", "{{instance}}"),
    ),
    graph(
        "Preemptions",
        f"Requests a second that lost their cache and had to start again. {NEEDS}",
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
    "Whether the replicas are up, how full they are, and whether experts stay in their slots.",
    ("instance", "engine"),
    {"Now": REPLICAS, "Load": LOAD, "Residency": RESIDENCY, "vLLM": VLLM, "Memory": MEMORY},
)
