"""What is said of a subset in settings and definitions; `routers.library.subset` chooses it, and loads numpy for
that."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class SubsetConfig(BaseModel):
    """How experts are chosen, and how many."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Literal["cluster", "greedy"] = Field(
        "greedy", description="Medoids of clusters of examples, or forward selection on the score table."
    )
    size: int = Field(ge=1, description="Experts to keep; a smaller library is kept whole.")
    seed: int = Field(0, ge=0, description="Of k-means.")
