"""Options of a subset in settings and definitions, which load without numpy; `routers.library.subset` chooses it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class SubsetConfig(BaseModel):
    """How many experts are chosen, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Literal["cluster", "greedy"] = Field(
        "greedy", description="Medoids of clusters of examples, or forward selection on the score table."
    )
    size: int = Field(ge=1, description="Number of experts to keep; a smaller library is kept whole.")
    seed: int = Field(0, ge=0, description="Seed of k-means.")
