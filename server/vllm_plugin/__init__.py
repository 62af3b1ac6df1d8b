"""What runs inside vLLM: it executes recipes, one expert, a mix or a gate, in one batch with everybody else's.

vLLM calls `register` through the entry point group ``vllm.general_plugins`` in its API server, its engine
core and its workers. All that we rely on inside vLLM is named and checked in
`server.vllm_plugin.vllm_contract`. Nothing of the gateway is imported but the recipe language.

    resolver    API server: a model's name → recipe → LoRARequest          store    experts' files, checked
    scheduler   engine core: what does not fit into the slots waits        admission  who may join the batch
    manager     worker: recipe → experts in slots                          plans    a recipe as the arithmetic needs it
    punica      worker: vLLM's mapping and layers → ours                   batch    rows of a step by recipe
    linear      worker: y += Σ g_e(x) s_e B_e A_e x                        gates    g_e
    op          the same as one opaque operation, for compiled models
    startup     how the engine core is started on a CPU                    stats    what residency costs
    norms       RMS norms on a CPU by vLLM's own kernels
"""

from __future__ import annotations


def register() -> None:
    """Install everything; a vLLM that knows no library is left alone."""
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
    from server.vllm_plugin.worker.slots import install_manager
    from server.vllm_plugin.worker.torch_op import install_splitting

    install_resolver(options.adapters_dir, options.num_slots(MAX_EXPERTS))
    install_manager()
    install_norms()
    install_splitting()
    install_scheduler()
    install_stats(options)
    if options.fork_engine:
        fork_engine_core()
