"""`adapter_config.json` as PEFT writes it: parsed, checked, and normalised for the store.

`read_config` turns the JSON into a `LoraSettings` and a list of problems; it never raises for bad content. Every option
that changes the forward pass in a way that the engine does not compute is refused by name. `normalised_config` writes
the equivalent config for the store: explicit modules instead of patterns, and nothing about the training machine.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from adapters_registry.checks.module_patterns import TargetRule
from adapters_registry.checks.supported_peft import TRAIN_ANEW, find_unsupported, find_warnings
from adapters_registry.disk.layout import CONFIG_FILE
from adapters_registry.errors import Problem, quote

_PLAIN_NAME = re.compile(r"[\w.]+", re.ASCII)
_MAX_BASE_NAME_CHARS = 200


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """The relevant options of a config. Harmless values replace refused ones, so that checking can continue."""

    rank: int
    alpha: float
    rule: TargetRule | None
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    use_rslora: bool = False
    base_model: str = ""
    warnings: tuple[str, ...] = ()


def read_config(raw: bytes) -> tuple[LoraSettings | None, list[Problem]]:
    """Parse a config; returns (None, problems) if it is not a JSON object or has no usable rank."""
    try:
        config = json.loads(raw.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        what = f"is not valid JSON ({type(error).__name__})"
        return None, [Problem(CONFIG_FILE, what, "Send the file that PEFT's save_pretrained wrote.")]
    if not isinstance(config, dict):
        return None, [Problem(CONFIG_FILE, "is not a JSON object", "Send the file that save_pretrained wrote.")]
    problems = find_unsupported(config)
    reader = _Reader(config, problems)
    rank = reader.number("r", _is_rank, "a whole number of at least 1")
    alpha = reader.number("lora_alpha", _is_alpha, "a finite number other than 0")
    settings = LoraSettings(
        rank=int(rank or 0),
        alpha=float(alpha or 0),
        rule=reader.target_rule(),
        rank_pattern={key: int(value) for key, value in reader.pattern("rank_pattern", _is_rank).items()},
        alpha_pattern={key: float(value) for key, value in reader.pattern("alpha_pattern", _is_alpha).items()},
        use_rslora=config.get("use_rslora") is True,
        base_model=base_name(config.get("base_model_name_or_path")),
        warnings=tuple(find_warnings(config)),
    )
    return (settings if rank and alpha else None), problems


def base_name(value: object) -> str:
    """Return a base's name without traces of a host: a hub name unchanged, or the last part of a path."""
    if not isinstance(value, str):
        return ""
    printable = "".join(character for character in value if character.isprintable())
    text = printable.replace("\\", "/").strip().rstrip("/ ")
    is_hub_name = text.count("/") == 1 and not text.startswith(("/", ".", "~")) and ":" not in text
    kept = text if is_hub_name else text.rpartition("/")[2].strip()
    return kept if len(kept) <= _MAX_BASE_NAME_CHARS else ""


def normalised_config(settings: LoraSettings, ranks: Mapping[str, int], alphas: Mapping[str, float]) -> bytes:
    """Return the canonical config for the store: equal adapters give equal bytes, however their configs were written.

    `ranks` and `alphas` hold the value of every adapted module. Exact module paths replace patterns.
    """
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "base_model_name_or_path": settings.base_model or None,
        "r": settings.rank,
        "lora_alpha": _plain_number(settings.alpha),
        "use_rslora": settings.use_rslora,
        "target_modules": sorted(ranks),
        "rank_pattern": {re.escape(module): rank for module, rank in sorted(ranks.items()) if rank != settings.rank},
        "alpha_pattern": {
            re.escape(module): _plain_number(alpha)
            for module, alpha in sorted(alphas.items())
            if alpha != settings.alpha
        },
        "bias": "none",
        "lora_dropout": 0.0,
        "init_lora_weights": True,
        "modules_to_save": None,
        "fan_in_fan_out": False,
        "use_dora": False,
    }
    return json.dumps(config, sort_keys=True, indent=1).encode("ascii") + b"\n"


# -- reading ------------------------------------------------------------------------------------------------------


class _Reader:
    """Reads typed values from a config and collects their problems."""

    def __init__(self, config: Mapping[str, Any], problems: list[Problem]) -> None:
        self._config = config
        self._problems = problems

    def refuse(self, key: str, what: str, fix: str) -> None:
        self._problems.append(Problem(f"{CONFIG_FILE}: {key}", what, fix))

    def number(self, key: str, is_good: Callable[[object], bool], wanted: str) -> float | None:
        value = self._config.get(key)
        if is_good(value):
            return value
        self.refuse(key, f"{quote(value)} is not {wanted}", "Send the file that PEFT's save_pretrained wrote.")
        return None

    def pattern(self, key: str, is_good: Callable[[object], bool]) -> Mapping[str, float]:
        value = self._config.get(key) or {}
        if isinstance(value, dict) and all(is_good(item) for item in value.values()):
            return value
        self.refuse(key, "is not an object from module patterns to numbers", "Correct or remove it.")
        return {}

    def names(self, key: str) -> tuple[str, ...] | str | None:
        """Return a list of names, or one text; None (and a problem) for anything else."""
        value = self._config.get(key)
        if isinstance(value, str):
            return value
        if value is None or (isinstance(value, list) and all(isinstance(item, str) and item for item in value)):
            return tuple(value or ())
        self.refuse(key, "is neither a list of names nor a text", "Correct it.")
        return None

    def target_rule(self) -> TargetRule | None:
        targets, excluded = self.names("target_modules"), self.names("exclude_modules")
        if targets is None or excluded is None:
            return None
        if not targets:
            self.refuse("target_modules", "names no module", "Name the adapted modules, or 'all-linear'.")
            return None
        if not isinstance(targets, str):
            for name in targets:
                if name.rpartition(".")[2] in ("embed_tokens", "lm_head", "wte", "embeddings"):
                    self.refuse("target_modules", f"{quote(name)}: embeddings are not supported", TRAIN_ANEW)
        layers, layer_names = self._layers(), self.names("layers_pattern")
        listed = (layer_names,) if isinstance(layer_names, str) and layer_names else tuple(layer_names or ())
        if not all(_PLAIN_NAME.fullmatch(name) for name in listed):
            self.refuse("layers_pattern", "only plain names are supported", "Name the module list, such as 'layers'.")
            listed = ()
        return TargetRule(targets, excluded, layers, listed)

    def _layers(self) -> frozenset[int] | None:
        value = self._config.get("layers_to_transform")
        if value is None or value == []:
            return None
        listed = value if isinstance(value, list) else [value]
        if all(type(item) is int for item in listed):
            return frozenset(listed)
        self.refuse("layers_to_transform", "is not a list of layer indices", "Correct or remove it.")
        return None


def _is_rank(value: object) -> bool:
    return type(value) is int and 1 <= value <= 2**20


def _is_alpha(value: object) -> bool:
    return type(value) in (int, float) and abs(value) < 1e9 and math.isfinite(value) and value != 0  # type: ignore[arg-type]


def _plain_number(value: float) -> int | float:
    return int(value) if value.is_integer() else value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
