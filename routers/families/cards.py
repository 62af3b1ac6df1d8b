"""Cards that several methods complete: each method replaces what is its own, and names itself.

A card here lacks name, title, paper and cost, so that no method can show another's by mistake.
"""

from __future__ import annotations

from routers.base import MethodCard

EMBEDDING_CARD = MethodCard(
    name="",
    title="",
    paper="",
    expert_training="independent",
    expert_data="private; a few example prompts are shared",
    routing_dataset="example prompts of each expert",
    input_granularity="example",
    depth="model",
    selection="top-1",
    aggregation="none",
    generalization="in-domain prompts; abstains on others",
    user_dataset="none",
    needs=("examples",),
)
"""Methods that compare the prompt with example prompts of each expert."""

SCORE_TABLE_CARD = MethodCard(
    name="",
    title="",
    paper="",
    expert_training="independent",
    expert_data="private",
    routing_dataset="labelled prompts that the base and all experts answered",
    input_granularity="example",
    depth="model",
    selection="top-1",
    aggregation="none",
    generalization="prompts like those of the table; the base answers where it is best",
    user_dataset="none",
    needs=("scores",),
    refit="costly",
)
"""Methods that learn from the table of scores which model is best for a prompt."""

STATIC_MIX_CARD = MethodCard(
    name="",
    title="",
    paper="",
    expert_training="independent",
    expert_data="private",
    routing_dataset="none",
    input_granularity="task",
    depth="model",
    selection="dense",
    aggregation="parameters",
    generalization="an unseen task with a few samples",
    user_dataset="a few prompts of the task, with answers",
    needs=("samples", "engine"),
    needs_embedding=False,
    refit="costly",
)
"""Methods that search one mix of experts for a task."""

BASELINE_CARD = MethodCard(
    name="",
    title="",
    paper="baseline",
    expert_training="any",
    expert_data="none",
    routing_dataset="none",
    input_granularity="task",
    depth="model",
    selection="top-1",
    aggregation="none",
    generalization="none",
    user_dataset="none",
    needs_embedding=False,
    standing="baseline",
)
"""Methods that do not look at the prompt, against which the others are measured."""
