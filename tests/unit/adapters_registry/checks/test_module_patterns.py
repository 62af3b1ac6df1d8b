from __future__ import annotations

import pytest

from adapters_registry.checks import module_patterns
from adapters_registry.checks.module_patterns import PatternError, TargetRule, resolve_patterns, select_modules

NAMES = [f"model.layers.{layer}.{short}" for layer in (0, 1, 11) for short in ("self_attn.q_proj", "mlp.up_proj")]
Q = {name for name in NAMES if name.endswith("q_proj")}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (TargetRule(("q_proj",)), Q),
        (TargetRule(("proj",)), set()),
        (TargetRule(("self_attn.q_proj", "nothing")), Q),
        (TargetRule(("model.layers.1.mlp.up_proj",)), {"model.layers.1.mlp.up_proj"}),
        (TargetRule("all-linear"), set(NAMES)),
        (TargetRule("ALL-LINEAR"), set(NAMES)),
        (TargetRule(r".*\.layers\.(0|1)\..*q_proj"), {n for n in Q if ".11." not in n}),
        (TargetRule("q_proj"), set()),  # as one text it is a regular expression for the whole path
        (TargetRule(("q_proj", "up_proj"), ("mlp.up_proj",)), Q),
        (TargetRule(("q_proj",), r".*\.1\..*"), {n for n in Q if ".1." not in n}),
        (TargetRule(("q_proj",), layers=frozenset({1})), {"model.layers.1.self_attn.q_proj"}),
        (TargetRule(("q_proj",), layers=frozenset({1}), layer_names=("layers",)), {"model.layers.1.self_attn.q_proj"}),
        (TargetRule(("q_proj",), layers=frozenset({1}), layer_names=("blocks",)), set()),
    ],
)
def test_selection_follows_peft(rule: TargetRule, expected: set[str]) -> None:
    assert select_modules(rule, NAMES) == expected


def test_the_first_matching_pattern_wins() -> None:
    patterns = {r"^model\.layers\.1\.self_attn\.q_proj": 32, "q_proj": 16, "layers.0.mlp.up_proj": 4}
    ranks = resolve_patterns(patterns, 8, NAMES)
    assert ranks["model.layers.1.self_attn.q_proj"] == 32
    assert ranks["model.layers.11.self_attn.q_proj"] == 16
    assert ranks["model.layers.0.mlp.up_proj"] == 4
    assert ranks["model.layers.1.mlp.up_proj"] == 8
    assert resolve_patterns({"(q|k)_proj": 2}, 8, NAMES)["model.layers.0.self_attn.q_proj"] == 2


def test_a_pattern_that_never_ends_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_patterns, "_TIMEOUT_S", 0.5)
    with pytest.raises(PatternError, match="too long"):
        select_modules(TargetRule(r"(([a-z._0-9])+)+!"), NAMES)


@pytest.mark.parametrize("pattern", ["(", "[z-a]", "(?P<x", "a{99999999999999999999}", "x" * 9000])
def test_bad_patterns(pattern: str) -> None:
    with pytest.raises(PatternError):
        select_modules(TargetRule(pattern), NAMES)


def test_too_many_patterns() -> None:
    with pytest.raises(PatternError, match="too many"):
        resolve_patterns({f"m{i}": 1 for i in range(1_000_000)}, 1, NAMES)
