"""Losses and entropies from prompt log-probabilities."""

import math
from typing import Any

import pytest

from routers.base import Sample
from server.engine.losses import counting_fields, read_losses, scoring_fields


def place(*probabilities: float) -> dict[str, Any]:
    return {str(token): {"logprob": math.log(p)} for token, p in enumerate(probabilities)}


def test_losses_are_means_over_their_own_tokens() -> None:
    places = [None, place(0.5, 0.25), place(0.25, 0.5), place(0.1), place(0.4)]
    found = read_losses({"prompt_logprobs": places}, 3)
    assert found.loss == pytest.approx(-(math.log(0.1) + math.log(0.4)) / 2)
    assert found.prompt_loss == pytest.approx(-(math.log(0.5) + math.log(0.25)) / 2)
    listed = -(0.5 * math.log(0.5) + 0.25 * math.log(0.25) + 0.25 * math.log(0.25))
    assert found.entropy == pytest.approx(listed)


def test_the_entropy_of_a_whole_distribution_is_exact() -> None:
    found = read_losses({"prompt_logprobs": [None, place(0.7, 0.2, 0.1), place(1.0)]}, 2)
    assert found.entropy == pytest.approx(-sum(p * math.log(p) for p in (0.7, 0.2, 0.1)))


@pytest.mark.parametrize("answer", [{}, {"prompt_logprobs": None}, {"prompt_logprobs": [None, place(0.5)]}])
def test_an_answer_without_what_was_asked_is_refused(answer: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no log-probabilities"):
        read_losses(answer, 2)


def test_what_is_asked() -> None:
    sample = Sample("2+2", "4")
    fields = scoring_fields(sample, with_entropy=False)
    assert fields["messages"][-1] == {"role": "assistant", "content": "4"}
    assert (fields["prompt_logprobs"], fields["max_tokens"]) == (0, 1)
    assert counting_fields(sample) == {"messages": [{"role": "user", "content": "2+2"}], "add_generation_prompt": True}
