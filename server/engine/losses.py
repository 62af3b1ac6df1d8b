"""Losses and entropies from an engine's prompt log-probabilities: what to ask, and how to read the answer.

A sample is sent as a finished conversation; the engine scores every token of it. The first tokens are those of the
conversation without its answer, whose number ``/tokenize`` tells; the others are the answer's. Pure functions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from routers.base import Sample

NUM_ALTERNATIVES = 20
"""Most likely tokens asked for at each place, for the entropy; vLLM's own default limit."""


@dataclass(frozen=True, slots=True)
class SampleLosses:
    """Figures of one sample under one model, in nats.

    Attributes:
        loss: Mean cross-entropy of the answer's tokens.
        prompt_loss: The same of the prompt's, but for the first.
        entropy: Mean entropy over the prompt's places, a lower bound: the unlisted rest counts as one token.
    """

    loss: float
    prompt_loss: float
    entropy: float


def scoring_fields(sample: Sample, *, with_entropy: bool) -> dict[str, Any]:
    """The body of a chat completion that scores a sample; ``model`` is left to the caller."""
    return {
        "messages": [{"role": "user", "content": sample.prompt}, {"role": "assistant", "content": sample.answer}],
        "add_generation_prompt": False,
        "continue_final_message": True,
        "max_tokens": 1,
        "temperature": 0,
        "prompt_logprobs": NUM_ALTERNATIVES if with_entropy else 0,
    }


def counting_fields(sample: Sample) -> dict[str, Any]:
    """The body of ``/tokenize`` for the conversation up to where the answer begins."""
    return {"messages": [{"role": "user", "content": sample.prompt}], "add_generation_prompt": True}


def read_losses(answer: Mapping[str, Any], num_prompt_tokens: int) -> SampleLosses:
    """Figures from the engine's answer.

    Args:
        answer: To `scoring_fields`.
        num_prompt_tokens: ``count`` of the answer to `counting_fields`.

    Raises:
        ValueError: The answer has no log-probabilities of its prompt, or none of the sample's answer.
    """
    places = answer.get("prompt_logprobs")
    if not isinstance(places, list) or len(places) <= num_prompt_tokens:
        raise ValueError("the engine gave no log-probabilities of the prompt and the answer")
    own = [_own(place) for place in places]
    prompt = [value for value in own[:num_prompt_tokens] if value is not None]
    wanted = [value for value in own[num_prompt_tokens:] if value is not None]
    if not wanted:
        raise ValueError("the sample's answer has no tokens")
    entropies = [_entropy(place) for place in places[:num_prompt_tokens] if place]
    return SampleLosses(-_mean(wanted), -_mean(prompt), _mean(entropies))


def _own(place: Mapping[str, Any] | None) -> float | None:
    """The log-probability of the token that is there: the first of the place's entries."""
    if not place:
        return None
    return float(next(iter(place.values()))["logprob"])


def _entropy(place: Mapping[str, Any]) -> float:
    logs = sorted((float(entry["logprob"]) for entry in place.values()), reverse=True)[:NUM_ALTERNATIVES]
    listed = [math.exp(log) for log in logs]
    rest = max(1.0 - sum(listed), 0.0)
    return -sum(p * log for p, log in zip(listed, logs, strict=True)) - (rest * math.log(rest) if rest > 1e-12 else 0.0)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
