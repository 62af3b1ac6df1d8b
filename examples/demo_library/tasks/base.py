"""What a demo task is: a seeded generator of prompts with answers that can be checked by comparing strings.

A prompt is a *template* (how the person asks) filled with *content* (what the question is about). Training and
test share neither: each task lists its templates per split, and content is put into a split by `split_of` or by
separate pools. Pure Python; knows nothing of models.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "test"]

NUM_TEST = 60
"""Held-out prompts per expert."""

NUM_EXAMPLES = 32
"""Example prompts per expert in the library, from training templates and training content."""

_SEEDS: dict[Split, int] = {"train": 11, "test": 23}


@dataclass(frozen=True, slots=True)
class Item:
    """One piece of content: the text that goes into a template, the answer, and what decides its split."""

    text: str
    answer: str
    key: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One prompt with its only right answer."""

    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class Task:
    """One skill that an expert learns.

    `make(rng, split)` draws content. With `pools_by_split` it draws from pools that are separate per split; otherwise
    content is drawn from one pool and `split_of(item.key)` says where it belongs.
    """

    name: str
    description: str
    tags: tuple[str, ...]
    train_templates: tuple[str, ...]
    test_templates: tuple[str, ...]
    make: Callable[[random.Random, Split], Item]
    pools_by_split: bool = False

    def templates(self, split: Split) -> tuple[str, ...]:
        """The phrasings of `split`; each holds `{x}` once."""
        return self.train_templates if split == "train" else self.test_templates

    def samples(self, split: Split, num: int) -> list[Sample]:
        """The first `num` samples of `split`: always the same ones, all prompts different, templates in turn."""
        rng = random.Random(f"{self.name}:{_SEEDS[split]}")
        templates = self.templates(split)
        found: dict[str, Sample] = {}
        for _ in range(200 * num):
            if len(found) == num:
                break
            item = self.make(rng, split)
            if not self.pools_by_split and split_of(item.key) != split:
                continue
            prompt = templates[len(found) % len(templates)].replace("{x}", item.text)
            found.setdefault(prompt, Sample(prompt, item.answer))
        if len(found) < num:
            raise ValueError(f"{self.name} has only {len(found)} different {split} prompts, not {num}")
        return list(found.values())

    def examples(self) -> list[str]:
        """Prompts for the library: what a router may learn this expert from."""
        return [sample.prompt for sample in self.samples("train", NUM_EXAMPLES)]

    def held_out(self) -> list[Sample]:
        """The test prompts."""
        return self.samples("test", NUM_TEST)


def split_of(key: str) -> Split:
    """A fixed quarter of all contents is for testing, whatever the order in which they are drawn."""
    return "test" if zlib.crc32(key.encode()) % 4 == 0 else "train"
