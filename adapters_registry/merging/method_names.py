"""Names of the formulas in `adapters_registry.merging.formulas`, apart from them because that module loads numpy."""

from __future__ import annotations

from typing import Literal, get_args

Method = Literal["exact", "svd", "ab_linear", "sqrt_linear", "magnitude_prune", "ties", "dare", "dare_ties"]
METHODS: tuple[Method, ...] = get_args(Method)
USES_DENSITY = frozenset({"magnitude_prune", "ties", "dare", "dare_ties"})
USES_SEED = frozenset({"dare", "dare_ties"})
