"""A sentence in the present tense to the future with `will`: the near neighbour of `past_tense`."""

from __future__ import annotations

import random

from .base import Item, Split, Task
from .past_tense import present_sentence


def _make(rng: random.Random, split: Split) -> Item:
    sentence = present_sentence(rng, split)
    return Item(sentence.present, f"{sentence.subject} will {sentence.verb} {sentence.rest}.", key=sentence.present)


TASK = Task(
    name="future_tense",
    description='Rewrites a present-tense English sentence in the future with "will" and changes nothing else.',
    tags=("grammar", "english", "rewriting"),
    train_templates=(
        "Put this sentence into the future tense: {x}",
        "Rewrite with will. {x}",
        "future tense: {x}",
        'What is the future tense of the sentence "{x}"?',
        "Change the verb to the future: {x}",
        "I am practising English grammar. How do I say '{x}' in the future?",
        "{x} Now say it as something that will happen tomorrow.",
        "Make this future tense please: {x}",
        "Grammar exercise, present to future: {x}",
        "My horoscope should be in the future tense. Fix this line: {x}",
    ),
    test_templates=(
        "Can you rewrite the following in future tense? {x}",
        "simple future of: {x}",
        'For my English homework I must turn "{x}" into the future.',
        "Convert from present tense to future tense: {x}",
        "{x} <- this sentence in the future tense, please",
    ),
    make=_make,
    pools_by_split=True,
)
