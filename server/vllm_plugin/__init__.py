"""What runs inside vLLM: it finds experts by their id and does the LoRA arithmetic on the CPU right.

vLLM calls `register` through the entry point group ``vllm.general_plugins`` in its API server, its engine
core and its workers. All that we rely on inside vLLM is named and checked in
`server.vllm_plugin.requirements`. Nothing of the gateway is imported but the recipe language.
"""

from __future__ import annotations

import os


def register() -> None:
    """Install the resolver, and on the CPU the arithmetic; a vLLM that knows no library is left alone."""
    adapters_dir = os.environ.get("MOERGATE_ADAPTERS_DIR")
    if not adapters_dir:
        return
    from server.vllm_plugin.requirements import check_vllm

    check_vllm()
    from server.vllm_plugin.punica import install_on_cpu
    from server.vllm_plugin.resolver import install_resolver
    from server.vllm_plugin.startup import fork_engine_core

    install_resolver(adapters_dir)
    install_on_cpu()
    fork_engine_core()
