"""Router `lora_retriever`: the experts whose examples' mean is nearest, alone, mixed or fused (Zhao et al., 2024).

    score(e) = q · mean of up to 20 examples of e, as a unit vector

``top-1`` takes the best expert. ``mixture`` sums the k = 3 best with weight 1/k; the authors' code does this in the
hidden states, so it is exactly a mix of LoRAs, not an ensemble of outputs. ``fusion`` averages their A matrices and
their B matrices, which is not the mean of the experts.

Differences from the paper: the authors drop alpha/r, here each expert keeps its scaling. Their encoder (INSTRUCTOR) is
fine-tuned contrastively on two fifths of the tasks, here the encoder is the gateway's embedder. ``moergate tune OUT``
fine-tunes that embedder on the library's examples with the same loss (`routers.embedders.tune`), and ``moergate fit
NAME --router lora_retriever --embedder OUT`` uses the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from routers.base import MethodCard, ScoredExpert
from routers.families.cards import EMBEDDING_CARD
from routers.families.example_means import MeanConfig, MeanRouter
from routers.families.options import CalibrationOptions
from routers.families.selection import Chosen, SelectionConfig, select


class LoraRetrieverConfig(SelectionConfig, MeanConfig):
    """Options of `lora_retriever`."""

    selection: Literal["top-1", "mixture", "fusion"] = Field(
        "mixture", description="What is executed: top-1 is the paper's selection; mixture and fusion are the paper's."
    )
    normalise: bool = Field(True, description="Compare with the mean's direction instead of with the mean.")


class LoraRetrieverRouter(MeanRouter):
    """Routes to the experts with the nearest means of 20 examples, mixed by default."""

    card: ClassVar[MethodCard] = replace(
        EMBEDDING_CARD,
        name="lora_retriever",
        title="LoraRetriever: nearest means, mixed",
        paper="Zhao et al., LoraRetriever, 2024 (arXiv:2402.09997)",
        selection="top-k",
        aggregation="outputs",
        generalization="in-domain and unseen tasks, by mixing neighbours",
        cost="one product with E means",
        differences=(
            "the encoder is the gateway's unless `moergate tune` has fine-tuned one",
            "each expert keeps its own scaling",
            "it may abstain",
        ),
    )
    config_class: ClassVar[type[CalibrationOptions]] = LoraRetrieverConfig
    max_examples: ClassVar[int | None] = 20

    def choose(self, ranked: Sequence[ScoredExpert]) -> Chosen:
        """Choose the best expert or a mix, as the option `selection` says."""
        return select(self.config, ranked)
