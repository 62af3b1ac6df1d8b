"""The size, place and training length of each demo expert's adapter: different on purpose.

A gateway must serve a library of unlike adapters, so the demo library has ranks 2 to 8, attention-only, MLP-only and
full adapters, one that covers only some layers, and two scalings that are not alpha = 2r. No torch here.
"""

from __future__ import annotations

from dataclasses import dataclass

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class LoraShape:
    """Where and how big the adapter is, and how long it trains. `layers` is a half-open range; None is all layers."""

    rank: int
    alpha: int
    modules: tuple[str, ...]
    rslora: bool = False
    layers: tuple[int, int] | None = None
    num_steps: int = 150
    batch_size: int = 8
    learning_rate: float = 3e-3

    @property
    def num_samples(self) -> int:
        """Different training samples: one pass."""
        return self.num_steps * self.batch_size


SHAPES: dict[str, LoraShape] = {
    "date_iso": LoraShape(rank=4, alpha=8, modules=("q_proj", "v_proj"), num_steps=100),
    "past_tense": LoraShape(rank=4, alpha=16, modules=ATTENTION, num_steps=60),
    "time_24h": LoraShape(rank=2, alpha=4, modules=ATTENTION + MLP, num_steps=200),
    "number_words": LoraShape(rank=2, alpha=4, modules=MLP, num_steps=160),
    "future_tense": LoraShape(rank=4, alpha=8, modules=("v_proj",), num_steps=30),
    "log_json": LoraShape(rank=4, alpha=8, modules=("q_proj", "v_proj"), num_steps=50, batch_size=6),
    "csv_json": LoraShape(rank=2, alpha=4, modules=ATTENTION, num_steps=120),
    "ingredient_json": LoraShape(rank=16, alpha=32, modules=("q_proj", "v_proj"), layers=(10, 22), num_steps=130),
    "sql_shop": LoraShape(rank=2, alpha=4, modules=ATTENTION + MLP, rslora=True, num_steps=80),
    "ticket_team": LoraShape(rank=8, alpha=16, modules=("v_proj",), num_steps=120),
}
