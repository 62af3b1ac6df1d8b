"""Which options of a PEFT config can be served: what the engine computes, what is harmless, what is refused and why.

An adapter whose forward pass is more than ``W x + scaling B A x`` would run and give wrong answers. So every option
that changes the forward pass is refused by name, and so is every unknown option that is set to a value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adapters_registry.disk.layout import CONFIG_FILE
from adapters_registry.errors import Problem, quote

TRAIN_ANEW = "Train it again without this option."
_MERGE_OR_TRAIN = "Merge it into an ordinary LoRA or train it again without this option."
_CONVERT = (
    "Save it again with PEFT's path_initial_model_for_weight_conversion, which makes an ordinary LoRA of it; "
    "this kind of initialisation changes the base's weights."
)

_REFUSED_WHEN_SET = {
    "use_dora": ("DoRA is not supported", _MERGE_OR_TRAIN),
    "modules_to_save": (
        "modules_to_save (fully trained modules) is not supported",
        "Train only LoRA weights.",
    ),
    "trainable_token_indices": ("trainable token embeddings are not supported", TRAIN_ANEW),
    "layer_replication": ("layer_replication changes the base and is not supported", TRAIN_ANEW),
    "lora_bias": ("lora_bias is not supported", TRAIN_ANEW),
    "megatron_config": (
        "Megatron adapters are not supported",
        "Export it with PEFT from a Hugging Face model.",
    ),
    "fan_in_fan_out": (
        "fan_in_fan_out (transposed weights) is not supported",
        "Train on a base with Linear layers.",
    ),
    "target_parameters": ("target_parameters is not supported", "Use target_modules."),
    "alora_invocation_tokens": ("activated LoRA (aLoRA) is not supported", TRAIN_ANEW),
    "use_qalora": ("QALoRA is not supported", TRAIN_ANEW),
    "use_bdlora": ("block-diagonal LoRA is not supported", TRAIN_ANEW),
    "kasa_config": ("KaSA is not supported", _MERGE_OR_TRAIN),
    "arrow_config": (
        "a router inside the adapter (Arrow) is not supported",
        "Register its experts one by one.",
    ),
    "monteclora_config": ("MonteCLoRA is not supported", TRAIN_ANEW),
    "velora_config": ("VeLoRA is not supported", TRAIN_ANEW),
}

_HARMLESS = frozenset(
    {"auto_mapping", "corda_config", "ensure_weight_tying", "eva_config", "inference_mode", "loftq_config"}
    | {"lora_dropout", "lora_ga_config", "megatron_core", "peft_version", "qalora_group_size", "revision"}
    | {"runtime_config", "task_type"}
)
"""Options for training or bookkeeping only, without effect on a trained adapter's forward pass."""

_READ = frozenset(
    {
        "alpha_pattern",
        "base_model_name_or_path",
        "bias",
        "exclude_modules",
        "init_lora_weights",
        "layers_pattern",
    }
    | {"layers_to_transform", "lora_alpha", "peft_type", "r", "rank_pattern", "target_modules", "use_rslora"}
)

_BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq")


def find_unsupported(config: Mapping[str, Any]) -> list[Problem]:
    """Return every option of this config that the engine would not honour."""
    problems = []

    def refuse(key: str, what: str, fix: str) -> None:
        problems.append(Problem(f"{CONFIG_FILE}: {key}", what, fix))

    peft_type = config.get("peft_type")
    if peft_type != "LORA":
        refuse("peft_type", f"{quote(peft_type)} is not supported", "Only LoRA adapters (LORA) can be served.")
    if (config.get("bias") or "none") != "none":
        refuse("bias", f"trained biases ({quote(config['bias'])}) are not supported", "Train with bias='none'.")
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower().startswith(_BASE_CHANGING_INITS):
        refuse("init_lora_weights", f"{quote(init)} is not supported", _CONVERT)
    for key, value in config.items():
        if key in _REFUSED_WHEN_SET and value:
            what, fix = _REFUSED_WHEN_SET[key]
            refuse(key, what, fix)
        elif value and key not in _REFUSED_WHEN_SET and key not in _HARMLESS and key not in _READ:
            fix = "Remove the option from the file if it has no effect on the trained adapter; else train without it."
            refuse(quote(key), "is an option that this version does not know", fix)
    return problems


def find_warnings(config: Mapping[str, Any]) -> list[str]:
    task = config.get("task_type")
    if task in (None, "CAUSAL_LM"):
        return []
    return [f"The adapter was trained for the task {quote(task)}; it is served for text generation."]
