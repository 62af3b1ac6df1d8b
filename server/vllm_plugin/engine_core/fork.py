"""A quicker start on a CPU: the engine core is forked from the API server instead of spawned.

A spawned process imports all of vLLM again, which takes longer than the rest of the start-up. On a CPU a fork cannot
break any device state, and it happens before anything is loaded or computed. vLLM's CPU platform requires spawning, so
the context is replaced only where the engine core is started; workers of a tensor-parallel engine are still spawned.
``MOERGATE_FORK_ENGINE=1`` enables the fork.
"""

from __future__ import annotations

import multiprocessing
import signal
from functools import wraps
from multiprocessing.context import BaseContext
from typing import Any

from vllm.platforms import current_platform
from vllm.v1.engine import utils
from vllm.v1.engine.core import EngineCoreProc

_run_engine_core = EngineCoreProc.run_engine_core


def fork_engine_core() -> None:
    """Make vLLM fork its engine core, if it runs on a CPU."""
    if current_platform.is_cpu():
        utils.get_mp_context = _fork_context
        EngineCoreProc.run_engine_core = staticmethod(_run_forked)


def _fork_context() -> BaseContext:
    return multiprocessing.get_context("fork")


@wraps(_run_engine_core)
def _run_forked(*args: Any, **kwargs: Any) -> Any:
    signal.set_wakeup_fd(-1)  # the inherited one makes a signal to this process wake the API server's event loop
    return _run_engine_core(*args, **kwargs)
