"""Router `centroid`: the expert whose examples' mean is nearest to the prompt.

    score(e) = q · mean(X_e)        the mean cosine of the prompt to the expert's examples

`routers.families.example_means` compares, `routers.families.selection` says what is made of the scores: the best
expert, or a mix of the k best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from routers.base import MethodCard, ScoredExpert
from routers.families.cards import EMBEDDING_CARD
from routers.families.example_means import MeanConfig, MeanRouter
from routers.families.options import CalibrationOptions
from routers.families.selection import Chosen, SelectionConfig, select


class CentroidConfig(SelectionConfig, MeanConfig):
    """Options of `centroid`."""


class CentroidRouter(MeanRouter):
    """Routes to the expert with the nearest mean of examples."""

    card: ClassVar[MethodCard] = replace(
        EMBEDDING_CARD,
        name="centroid",
        title="Nearest mean of example prompts",
        paper="baseline in mttl and in most embedding routers",
        generalization="in-domain prompts; abstains on others",
        cost="one product with E means",
    )
    config_class: ClassVar[type[CalibrationOptions]] = CentroidConfig

    def choose(self, ranked: Sequence[ScoredExpert]) -> Chosen:
        """Choose the best expert or a mix, as the option `selection` says."""
        return select(self.config, ranked)
