"""vLLM's scheduler within the slots: a request waits until its experts fit.

vLLM's scheduler counts recipes; this one also counts experts. Before each step it removes the requests that may not
join from the queue (`slot_admission` decides which), lets vLLM schedule the others, and returns the removed ones in
order of arrival.

The experts of requests that may join are loaded first. If the files of one were damaged since the request came in,
the request ends with an error before any of it is computed or cached; all other requests continue.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from typing import Any

from vllm.config.scheduler import SchedulerConfig
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from server.vllm_plugin.engine_core.slot_admission import SlotAdmission, WaitingRequest
from server.vllm_plugin.options import PluginOptions
from server.vllm_plugin.plans import plan_of_request
from server.vllm_plugin.vllm_contract import UnsupportedVllm
from server.vllm_plugin.worker.slots import load_ahead

log = logging.getLogger("vllm.moergate.scheduler")

MAX_PLANS = 65536

_get_scheduler_cls = SchedulerConfig.get_scheduler_cls


class _FitsSlots:
    """Mixin for vLLM's schedulers that holds requests back until their experts fit into the slots."""

    waiting: Any
    running: list[Any]
    grammar_compile_error_reqs: set[str]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(getattr(self, "grammar_compile_error_reqs", None), set):
            raise UnsupportedVllm(
                "Moergate's plugin cannot run in this vLLM: its scheduler cannot end a single request."
            )
        max_loras = self.lora_config.max_loras if self.lora_config else 0  # type: ignore[attr-defined]
        options = PluginOptions.from_environ()
        self._admission = SlotAdmission(options.num_slots(max_loras), options.max_slot_wait_s)
        self._experts: OrderedDict[int, frozenset[str]] = OrderedDict()

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Schedule one step, as vLLM's own scheduler does."""
        held = self._hold_back() if self.waiting and self.lora_config else []  # type: ignore[attr-defined]
        try:
            return super().schedule(*args, **kwargs)  # type: ignore[misc]
        finally:
            if held:
                self._put_back(held)

    def _hold_back(self) -> list[Any]:
        now = time.time()
        waiting = list(self.waiting)
        running = [self._experts_of(request) for request in self.running]
        asked = [WaitingRequest(self._experts_of(request), now - request.arrival_time) for request in waiting]
        admitted = self._admission.choose(running, asked)
        held = [
            request for request, may in zip(waiting, admitted, strict=True) if not (may and self._can_load(request))
        ]
        if held:
            self.waiting.remove_requests(held)
        return held

    def _can_load(self, request: Any) -> bool:
        if request.lora_request is None:
            return True
        if request.request_id not in self.grammar_compile_error_reqs:  # vLLM ends these with an error after the step
            try:
                load_ahead(request.lora_request)
            except Exception:
                log.exception("request %s fails: an expert cannot be loaded", request.request_id)
                self.grammar_compile_error_reqs.add(request.request_id)
        return request.request_id not in self.grammar_compile_error_reqs

    def _put_back(self, held: list[Any]) -> None:
        left = list(self.waiting)
        self.waiting.remove_requests(left)
        for request in sorted([*left, *held], key=lambda request: request.arrival_time):
            self.waiting.add_request(request)

    def _experts_of(self, request: Any) -> frozenset[str]:
        lora = request.lora_request
        if lora is None:
            return frozenset()
        known = self._experts.get(lora.lora_int_id)
        if known is None:
            known = frozenset(plan_of_request(lora.lora_name, lora.lora_path).experts)
            self._experts[lora.lora_int_id] = known
            while len(self._experts) > MAX_PLANS:
                self._experts.popitem(last=False)
        return known


class ExpertScheduler(_FitsSlots, Scheduler):  # type: ignore[misc]
    """vLLM's scheduler within the slots."""


class AsyncExpertScheduler(_FitsSlots, AsyncScheduler):  # type: ignore[misc]
    """vLLM's asynchronous scheduler within the slots."""


def install_scheduler() -> None:
    """Make vLLM use these schedulers instead of its own; a scheduler that an operator chose stays."""

    def get_scheduler_cls(self: SchedulerConfig) -> Any:
        chosen = _get_scheduler_cls(self)
        return {Scheduler: ExpertScheduler, AsyncScheduler: AsyncExpertScheduler}.get(chosen, chosen)

    SchedulerConfig.get_scheduler_cls = get_scheduler_cls
