"""Prices of tokens, and what a request costs by them."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field

BASE = "base"  # as `routers.base.BASE`; that module loads numpy, and the command line reads settings without it


class Price(BaseModel):
    """Price per million tokens, in the operator's currency."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: float = Field(0.0, ge=0, description="Price of a million prompt tokens.")
    output: float = Field(0.0, ge=0, description="Price of a million generated tokens.")


def cost_of(prices: Mapping[str, Price], expert: str, input_tokens: int, output_tokens: int) -> float:
    """Cost of a request, 0 where no price is configured.

    Args:
        prices: Prices by expert name; ``base`` is the price of the base, ``expert`` that of all other experts.
        expert: Name of the expert that answered, or ``base``.
        input_tokens: Tokens of the prompt.
        output_tokens: Tokens of the answer.
    """
    price = prices.get(expert) or (None if expert == BASE else prices.get("expert"))
    return (input_tokens * price.input + output_tokens * price.output) / 1e6 if price else 0.0
