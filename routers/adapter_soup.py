"""Router `adapter_soup`: the five experts most similar to the prompt, averaged (Chronopoulou et al. 2023).

    score(e) = mean over e's examples of their cosine to the prompt        (up to 100 examples)

The paper compares 100 samples of a new domain with 100 of each expert's and then averages the weights of the best
experts, A and B each by itself; that is ``fusion``. Here the soup is chosen for each prompt.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from routers.base import MethodCard
from routers.centroid import CentroidRouter, SelectionConfig


class AdapterSoupConfig(SelectionConfig):
    """Options of `adapter_soup`."""

    selection: Literal["top-1", "mixture", "fusion"] = Field(
        "fusion", description="fusion averages A and B as the paper does; mixture is the exact mean of the experts."
    )
    top_k: int = Field(5, ge=1, le=64, description="Experts in the soup.")


class AdapterSoupRouter(CentroidRouter):
    """Mean cosine, uniform soup; see the module's docstring."""

    card: ClassVar[MethodCard] = replace(
        CentroidRouter.card,
        name="adapter_soup",
        title="AdapterSoup: the most similar experts, averaged",
        paper="Chronopoulou et al., AdapterSoup, 2023 (arXiv:2302.07027)",
        input_granularity="task",
        selection="top-k",
        aggregation="parameters",
        generalization="new domains, by averaging similar ones",
        differences=("chosen for each prompt, not for a task", "it may abstain"),
    )
    config_class: ClassVar[type[SelectionConfig]] = AdapterSoupConfig
    max_examples: ClassVar[int | None] = 100
