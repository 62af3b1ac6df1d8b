"""The plugin inside vLLM: executes recipes (one expert, a mix or a gate) in one batch with all other requests.

vLLM calls `register` through the entry point group ``vllm.general_plugins`` in its API server, its engine core and its
workers. The folders say which process runs what:

    api_server       resolver: a model's name → recipe → LoRARequest
    engine_core      scheduler: requests whose experts do not fit into the slots wait; slot_admission decides which;
                     fork: how the engine core starts on a CPU
    worker           slots: recipe → experts in slots; layer_adapters: vLLM's mapping and layers → ours;
                     torch_op: the arithmetic as one opaque operation for compiled models
    kernels          expert_linear: y += Σ g_e(x) s_e B_e A_e x; batch: the rows of a step by recipe;
                     rms_norm: RMS norms on a CPU by vLLM's own kernels

All of them share `plans` (a recipe as the arithmetic needs it), `expert_store` (experts' files, checked),
`residency_stats` (what residency costs), `options` (environment variables) and `vllm_contract` (everything that the
plugin relies on inside vLLM). The plugin imports nothing of the gateway but the recipe language.
"""

from __future__ import annotations


def register() -> None:
    """Install all parts; without a library, vLLM stays unchanged."""
    from server.vllm_plugin.options import PluginOptions

    options = PluginOptions.from_environ()
    if options.adapters_dir is None:
        return
    from server.vllm_plugin.vllm_contract import check_vllm

    check_vllm()
    from server.engine.recipes import MAX_EXPERTS
    from server.vllm_plugin.api_server.resolver import install_resolver
    from server.vllm_plugin.engine_core.fork import fork_engine_core
    from server.vllm_plugin.engine_core.scheduler import install_scheduler
    from server.vllm_plugin.kernels.rms_norm import install_norms
    from server.vllm_plugin.residency_stats import install_stats
    from server.vllm_plugin.worker.slots import install_worker_manager
    from server.vllm_plugin.worker.torch_op import install_splitting

    install_resolver(options.adapters_dir, options.num_slots(MAX_EXPERTS))
    install_worker_manager()
    install_norms()
    install_splitting()
    install_scheduler()
    install_stats(options)
    if options.fork_engine:
        fork_engine_core()
