"""Which requests are made: how experts are drawn, how they are named, and how long prompts are."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate

import orjson

from load.adapters import name_of, prompt_of
from load.asked import Asked, Kind
from load.timeline import Timeline

ONLY_EXPERTS: Mapping[Kind, float] = {"expert": 1.0}
EVERYTHING: Mapping[Kind, float] = {"base": 1, "expert": 4, "version": 1, "mix": 1.5, "gate": 0.5, "auto": 2}


@dataclass(frozen=True, slots=True)
class Mixture:
    """Requests of a phase.

    Attributes:
        num_experts: Experts that stay, numbered from 0.
        skew: Zipf's exponent: expert i is asked in proportion to 1 / (i + 1)^skew; 0 asks all alike.
        kinds: How experts are named, with shares.
        num_words: Length of a prompt.
        num_tokens: Length of an answer.
        stream: Whether answers are streams.
        changing_share: Share of requests for experts that come and go.
        new_prompts: Whether no prompt comes twice; else each expert has a few that come again and again.
    """

    num_experts: int
    skew: float = 1.0
    kinds: Mapping[Kind, float] = field(default_factory=lambda: dict(EVERYTHING))
    num_words: int = 24
    num_tokens: int = 16
    stream: bool = True
    changing_share: float = 0.1
    new_prompts: bool = False


class Draw:
    """Draws requests; not for several threads.

    Args:
        mixture: Of what.
        seed: The same seed gives the same requests, as long as the library does the same.
        timeline: Which versions there are.
        base: What the base is called.
        policy: The policy that routes.
    """

    def __init__(self, mixture: Mixture, seed: int, timeline: Timeline, base: str, policy: str) -> None:
        self._mixture = mixture
        self._random = random.Random(seed)
        self._timeline = timeline
        self._base = base
        self._policy = policy
        self._weights = list(accumulate((index + 1) ** -mixture.skew for index in range(mixture.num_experts)))
        self._kinds = list(mixture.kinds)
        self._shares = list(accumulate(mixture.kinds.values()))
        self.changing: list[int] = []
        self.routable: set[int] = set()

    def next(self, serial: int) -> tuple[Asked, bytes]:
        """A request and its body."""
        draw, mixture = self._random, self._mixture
        kind = draw.choices(self._kinds, cum_weights=self._shares)[0]
        if self.changing and kind in ("expert", "version", "auto") and draw.random() < mixture.changing_share:
            index = draw.choice(self.changing)
            if kind == "auto" and index not in self.routable:
                kind = "expert"
        else:
            index = self._stable()
        asked = self._asked(kind, index)
        number = serial if mixture.new_prompts else draw.randrange(8)
        fields = {
            "model": asked.model,
            "messages": [{"role": "user", "content": prompt_of(index, number, mixture.num_words)}],
            "max_tokens": mixture.num_tokens,
            "temperature": 0,
            "stream": mixture.stream,
        }
        return asked, orjson.dumps(fields)

    def _stable(self) -> int:
        return self._random.choices(range(self._mixture.num_experts), cum_weights=self._weights)[0]

    def _asked(self, kind: Kind, index: int) -> Asked:
        name = name_of(index)
        version = self._timeline.now(name)
        stream, num_tokens = self._mixture.stream, self._mixture.num_tokens
        if kind == "base":
            return Asked(kind, self._base, (), None, stream, num_tokens)
        if kind == "auto":
            return Asked(kind, self._policy, ((name, 0.0),), version, stream, num_tokens)
        if kind == "version" and version is not None:
            return Asked(kind, f"{name}@{version}", ((name, 0.0),), version, stream, num_tokens)
        other = self._stable()
        if kind == "mix" and other != index:
            return Asked(
                kind, f"mix({name}*0.6,{name_of(other)}*0.4)", ((name, 0.6), (name_of(other), 0.4)), None, stream,
                num_tokens,
            )  # fmt: skip
        if kind == "gate" and other != index:
            model = f"gate(uniform,k=2;{name},{name_of(other)})"
            return Asked(kind, model, ((name, 0.0), (name_of(other), 0.0)), None, stream, num_tokens)
        return Asked("expert", name, ((name, 0.0),), None, stream, num_tokens)
