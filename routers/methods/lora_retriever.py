"""Router `lora_retriever`: the experts whose examples' mean is nearest, alone, mixed or fused (Zhao et al. 2024).

    score(e) = q · mean of up to 20 examples of e, as a unit vector

``selection`` takes the best; ``mixture`` sums the k = 3 best with weight 1/k, which in the authors' code happens in the
hidden states and so is exactly a mix of LoRAs, not an ensemble of outputs; ``fusion`` averages their A and their B,
which is not the mean of the experts. The authors drop alpha/r in both; here each expert keeps its scaling. Their
encoder (INSTRUCTOR) is fine-tuned contrastively on two fifths of the tasks. Untuned, it is here the gateway's embedder;
tuned, ``moergate tune OUT`` makes it of the library's examples by the same loss (`routers.embedders.tune`), and
``moergate fit NAME --router lora_retriever --embedder OUT`` uses it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from routers.base import MethodCard
from routers.families.scoring import ScoringConfig
from routers.methods.centroid import CentroidConfig, CentroidRouter


class LoraRetrieverConfig(CentroidConfig):
    """Options of `lora_retriever`."""

    selection: Literal["top-1", "mixture", "fusion"] = Field(
        "mixture", description="top-1 is the paper's selection; mixture and fusion are as there."
    )
    normalise: bool = Field(True, description="Compare with the mean's direction instead of with the mean.")


class LoraRetrieverRouter(CentroidRouter):
    """Nearest means of 20 examples, mixed; see the module's docstring."""

    card: ClassVar[MethodCard] = replace(
        CentroidRouter.card,
        name="lora_retriever",
        title="LoraRetriever: nearest means, mixed",
        paper="Zhao et al., LoraRetriever, 2024 (arXiv:2402.09997)",
        selection="top-k",
        aggregation="outputs",
        generalization="in-domain and unseen tasks, by mixing neighbours",
        differences=(
            "the encoder is the gateway's unless moergate tune has made one",
            "each expert keeps its own scaling",
            "it may abstain",
        ),
    )
    config_class: ClassVar[type[ScoringConfig]] = LoraRetrieverConfig
    max_examples: ClassVar[int | None] = 20
