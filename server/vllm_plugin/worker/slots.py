"""Experts in slots, in vLLM's worker: recipes are expanded to experts, and every adapted module gets our arithmetic.

vLLM has one LoRA a request, and one number limits both the LoRAs in a batch and the resident ones. Here these are two
numbers: recipes in a batch (``--max-loras``, which the scheduler keeps) and experts in slots
(``MOERGATE_EXPERT_SLOTS``). `RecipeWorkerManager` expands each request's recipe to its experts, which vLLM's own caches
hold. `ExpertModelManager` packs an expert that gets a slot for `ExpertLinear`; on a CPU that replaces vLLM's own
buffers. The registry refuses adapters of the embedding and the output head, so these are not wrapped.
"""

from __future__ import annotations

import ctypes
import time
from collections import OrderedDict
from collections.abc import Collection
from itertools import count
from typing import Any

import torch
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.lora_model import LoRAModel
from vllm.lora.model_manager import DEFAULT_LANGUAGE_WRAPPER_KEY, LRUCacheLoRAModelManager
from vllm.lora.request import LoRARequest
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager
from vllm.platforms import current_platform
from vllm.v1.worker import lora_model_runner_mixin

from server.vllm_plugin.expert_store import ExpertStore
from server.vllm_plugin.kernels.batch import Batch
from server.vllm_plugin.kernels.expert_linear import ExpertLinear
from server.vllm_plugin.kernels.module_weights import SliceWeights
from server.vllm_plugin.options import PluginOptions
from server.vllm_plugin.plans import RecipePlan, forgotten_version, plan_of_request
from server.vllm_plugin.residency_stats import ResidencyStats
from server.vllm_plugin.worker.layer_adapters import BatchWrapper, ModuleWrapper, forward_over

MAX_PLANS = 65536
FIRST_EXPERT_INT_ID = 1 << 40
"""vLLM numbers recipes from 1; the ids of experts begin far above."""

IN_MEMORY_PER_SLOT = 4

_ARROW = "arrow"
_UNADAPTED = ("embed_tokens", "lm_head")


class ExpertModelManager(LRUCacheLoRAModelManager):  # type: ignore[misc]
    """The slots of one model; `RecipeWorkerManager` uses its `plans` and `stats` too."""

    def __init__(self, *args: Any, lora_config: Any, device: torch.device, **kwargs: Any) -> None:
        self.batch = Batch(lora_config.lora_dtype, device)
        self.plans: OrderedDict[int, RecipePlan] = OrderedDict()
        self.names: dict[int, str] = {}
        self.ranks: dict[str, int] = {}
        self.vectors: dict[int, dict[str, torch.Tensor]] = {}
        options = PluginOptions.from_environ()
        self.stats = ResidencyStats(options.stats_file)
        self._linears: dict[str, ExpertLinear] = {}
        self._slots = options.num_slots(lora_config.max_loras)
        self._slots_in_buffers = 1 if current_platform.is_cpu() else self._slots
        self._making_buffers = False
        super().__init__(*args, lora_config=lora_config, device=device, **kwargs)

    @property
    def lora_slots(self) -> int:
        """Number of slots; while vLLM makes its own buffers, the number of experts that these hold."""
        return self._slots_in_buffers if self._making_buffers else self._slots

    @property
    def capacity(self) -> int:
        """Number of experts that are kept in memory, in a slot or ready for one."""
        theirs: int = super().capacity
        return max(IN_MEMORY_PER_SLOT * self._slots, theirs)

    def _init_punica_wrapper(self, *args: Any, **kwargs: Any) -> None:
        super()._init_punica_wrapper(*args, **kwargs)
        key = self.mm_mapping.language_model[0] if self.supports_mm else DEFAULT_LANGUAGE_WRAPPER_KEY
        theirs = None if current_platform.is_cpu() else self.punica_wrapper_mapping[key]
        self.punica_wrapper_mapping[key] = BatchWrapper(self, theirs)

    def _create_lora_modules(self) -> None:
        wrapped: list[str] = getattr(self, "supported_lora_modules")  # noqa: B009 - set by an untyped base class
        self.supported_lora_modules = [name for name in wrapped if name not in _UNADAPTED]
        self._making_buffers = True
        try:
            super()._create_lora_modules()
        finally:
            self._making_buffers = False
        for name, module in self.modules.items():
            if isinstance(module, BaseLinearLayerWithLoRA) and isinstance(module.punica_wrapper, BatchWrapper):
                d_in = module.lora_a_stacked[0].shape[-1]
                self._linears[name] = ExpertLinear(self.batch, d_in, module.output_slices)
                wrapper = ModuleWrapper(name, self._linears[name], module.punica_wrapper.theirs)
                module.set_mapping(wrapper)
                if wrapper.theirs is None and module.tp_size == 1:
                    module.forward = forward_over(module.base_layer, wrapper)

    def activate_adapter(self, lora_id: int) -> bool:
        """Give an expert a slot: a free one, or that of the least recently used expert."""
        if lora_id in self._active_adapters:
            self._active_adapters.touch(lora_id)
            return False
        started = time.perf_counter()
        if current_platform.is_cpu():
            if len(self._active_adapters) >= self._slots:
                self._active_adapters.remove_oldest()
            self.lora_index_to_id[self.lora_index_to_id.index(None)] = lora_id
            self._active_adapters[lora_id] = None
        else:
            super().activate_adapter(lora_id)
        self._pack(lora_id, self._registered_adapters[lora_id])
        self.stats.activated(self.names.get(lora_id, str(lora_id)), time.perf_counter() - started)
        return True

    def remove_all_adapters(self) -> None:
        """Empty all slots, as after warm-up."""
        super().remove_all_adapters()
        for name in list(self.ranks):
            self._drop(name)
        self.plans.clear()

    def _deactivate_adapter(self, lora_id: int) -> None:
        super()._deactivate_adapter(lora_id)
        self._drop(self.names.get(lora_id, str(lora_id)))

    def _drop(self, name: str) -> None:
        for module in self._linears.values():
            module.drop(name)
        self.batch.forget(name)
        self.ranks.pop(name, None)
        self.stats.evicted(name)

    def _pack(self, lora_id: int, model: LoRAModel) -> None:
        name = self.names.get(lora_id, str(lora_id))
        vectors = self.vectors.get(lora_id, {})
        rank = 1
        for module_name, module in self._linears.items():
            slices = self._slices(module_name, model, vectors)
            if any(slices):
                module.put(name, slices)
                rank = max(rank, *(len(found.a) for found in slices if found is not None))
        self.ranks[name] = rank

    def _slices(
        self, module_name: str, model: LoRAModel, vectors: dict[str, torch.Tensor]
    ) -> list[SliceWeights | None]:
        """An expert's weights for each slice of a module, cut for this rank of a tensor-parallel engine."""
        layer = self.modules[module_name]
        weights = self._get_lora_layer_weights(model, module_name)
        if weights is None:
            return [None] * layer.n_slices
        parts = self.packed_modules.get(module_name, [module_name])
        lora_a, lora_b = weights.lora_a, weights.lora_b
        if isinstance(lora_b, list) and len(lora_b) != layer.n_slices:
            lora_a, lora_b = layer.expand_packed_lora(lora_a, lora_b)
        if layer.tp_size > 1:
            lora_a, lora_b = layer.slice_lora_a(lora_a), layer.slice_lora_b(lora_b)
        if not isinstance(lora_a, list):
            lora_a, lora_b = [lora_a], [lora_b]
        found: list[SliceWeights | None] = []
        for part, a, b in zip(parts, lora_a, lora_b, strict=True):
            if a is None or b is None:
                found.append(None)
                continue
            vector = vectors.get(part)
            device = layer.device
            found.append(
                SliceWeights(
                    a.to(device).contiguous(),
                    b.T.to(device).contiguous(),
                    None if vector is None else vector.to(device),
                )
            )
        return found


class RecipeWorkerManager(LRUCacheWorkerLoRAManager):  # type: ignore[misc]
    """Expands recipes to experts; requests without a recipe (``--lora-modules``) behave as in vLLM's own manager."""

    _manager_cls = ExpertModelManager

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        adapters_dir = PluginOptions.from_environ().adapters_dir
        assert adapters_dir is not None  # noqa: S101 - without a store nothing is installed
        self._store = ExpertStore(adapters_dir)
        self._int_ids: dict[str, int] = {}
        self._ahead: dict[str, float] = {}
        self._next_int_id = count(FIRST_EXPERT_INT_ID)
        _workers[:] = [self]

    def load_ahead(self, lora_request: LoRARequest) -> None:
        """Load a request's experts into memory before the step that needs them in slots.

        Raises:
            ValueError, OSError: An expert cannot be loaded; the request is not scheduled yet.
        """
        for expert in self._plan(lora_request).experts:
            if (int_id := self._int_ids.get(expert)) is None or self._adapter_manager.get_adapter(int_id) is None:
                started = time.perf_counter()
                self._load(expert, lora_request)
                self._ahead[expert] = time.perf_counter() - started

    def add_adapter(self, lora_request: LoRARequest) -> bool:
        """Load a request's experts into memory, which finds bad files; its first step puts the experts into slots.

        Raises:
            ValueError, OSError: An expert cannot be loaded, or there are more experts than slots.
        """
        plan = self._plan(lora_request)
        self._check_fits(plan.experts)
        for expert in plan.experts:
            self._load(expert, lora_request)
        return True

    def remove_adapter(self, adapter_id: int) -> bool:
        """Forget a recipe; a single expert, or one that `forgetting_id` names, also leaves memory."""
        if (version := forgotten_version(adapter_id)) is not None:
            removed = [self._forget(expert) for expert in list(self._int_ids) if expert.endswith(version)]
            release_memory()
            return any(removed)
        plan = self._adapter_manager.plans.pop(adapter_id, None)
        if plan is None or len(plan.experts) != 1:
            return plan is not None
        return self._forget(plan.experts[0])

    def _forget(self, expert: str) -> bool:
        """Remove an expert from its slot and from memory; a later request loads it again."""
        manager = self._adapter_manager
        int_id = self._int_ids.pop(expert, None)
        if int_id is None:
            return True
        removed: bool = super().remove_adapter(int_id)
        manager.names.pop(int_id, None)
        manager.vectors.pop(int_id, None)
        return removed

    def _apply_adapters(self, adapter_requests: set[Any]) -> None:
        """Put every expert of every recipe in the batch into a slot; vLLM calls this before a step."""
        plans = [self._plan(request) for request in adapter_requests if request]
        needed = {expert: None for plan in plans for expert in plan.experts}
        self._check_fits(needed)
        manager = self._adapter_manager
        for expert in needed:  # resident experts first, so that loading the others does not evict them
            int_id = self._int_ids.get(expert)
            if int_id is not None and int_id in manager._active_adapters:
                manager._active_adapters.touch(int_id)
        for request in adapter_requests:
            if request:
                for expert in self._plan(request).experts:
                    self._activate(expert, request)

    def _plan(self, request: LoRARequest) -> RecipePlan:
        plans: OrderedDict[int, RecipePlan] = self._adapter_manager.plans
        plan = plans.get(request.lora_int_id)
        if plan is None:
            plan = plans[request.lora_int_id] = plan_of_request(request.lora_name, request.lora_path)
            while len(plans) > MAX_PLANS:
                plans.popitem(last=False)
        else:
            plans.move_to_end(request.lora_int_id)
        return plan

    def _check_fits(self, experts: Collection[str]) -> None:
        slots = self._adapter_manager.lora_slots
        if len(experts) > slots:
            raise ValueError(
                f"{len(experts)} experts are needed at once, but there are only {slots} slots (--max-loras)."
            )

    def _activate(self, expert: str, request: LoRARequest) -> None:
        """Make sure that an expert is in a slot."""
        manager = self._adapter_manager
        int_id = self._int_ids.get(expert)
        if int_id is not None and int_id in manager._active_adapters:
            manager.stats.hit()
            manager._active_adapters.touch(int_id)
            manager.get_adapter(int_id)  # marks it as used in the memory cache too
            return
        started = time.perf_counter()
        int_id, was_loaded = self._load(expert, request)
        manager.activate_adapter(int_id)
        ahead = self._ahead.pop(expert, None)
        manager.stats.missed(
            time.perf_counter() - started + (ahead or 0), from_disk=not was_loaded or ahead is not None
        )

    def _load(self, expert: str, request: LoRARequest) -> tuple[int, bool]:
        """Make sure that an expert is in memory; returns its id, and whether it was in memory already."""
        manager = self._adapter_manager
        int_id = self._int_ids.get(expert)
        folder = self._store.folder_of(expert)
        if int_id is None:
            is_dummy = manager.get_adapter(request.lora_int_id) is not None  # from vLLM's warm-up
            int_id = self._int_ids[expert] = request.lora_int_id if is_dummy else next(self._next_int_id)
            manager.names[int_id] = expert
            self._forget_names()
        if manager.get_adapter(int_id) is not None:
            return int_id, True
        path = str(folder) if folder is not None else request.lora_path
        loaded = self._load_adapter(LoRARequest(lora_name=expert, lora_int_id=int_id, lora_path=path))
        if folder is not None:
            manager.vectors[int_id] = self._store.vectors_of(_ARROW, folder)
        if len(manager) + 1 > manager.capacity:
            manager.remove_oldest_adapter()
        manager.add_adapter(loaded)
        return int_id, False

    def _forget_names(self) -> None:
        """Drop the ids of experts that left memory, once there are many."""
        manager = self._adapter_manager
        if len(self._int_ids) <= 2 * manager.capacity + 64:
            return
        kept = self.list_adapters() | set(manager._active_adapters)
        for expert, int_id in list(self._int_ids.items())[:-1]:
            if int_id not in kept:
                del self._int_ids[expert]
                manager.names.pop(int_id, None)
                manager.vectors.pop(int_id, None)


def release_memory() -> None:
    """Return freed pages to the system, which glibc otherwise keeps; no effect with other C libraries."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


_workers: list[RecipeWorkerManager] = []


def load_ahead(request: LoRARequest) -> None:
    """Load a request's experts if the worker is in this process; otherwise the worker loads them later.

    Raises:
        ValueError, OSError: An expert cannot be loaded.
    """
    for worker in _workers:
        worker.load_ahead(request)


def install_worker_manager() -> None:
    """Make vLLM's model runners use `RecipeWorkerManager`."""
    lora_model_runner_mixin.LRUCacheWorkerLoRAManager = RecipeWorkerManager
