"""Whether an expert works on the real engine: asked before it is offered, and written into its record.

The engine reads a few of the expert's own examples under the expert, under the base and under other experts, all in one
batch, and tells the log-probability of every token that it read; the first prompt is also read alone. From these:

distance        mean absolute difference of the log-probabilities, in nats, of the prompt for which it is largest
base_distance   between expert and base: must exceed the noise, else the adapter has no effect
noise           of the base, between alone and in the batch
repeat_distance the same of the expert: must stay below `base_distance`, else the name does not always give this adapter
nearest_other   the smallest distance to another expert's content: must exceed the noise, else somebody else answers
load_s          time of the first reading, with which the engine loads the adapter, in seconds

All figures must be finite. A quality gate of the manifest has the expert answer its samples and takes the mean score.
An engine that cannot be asked now raises `EngineBusy`, one that does not tell log-probabilities `CannotProbe`: neither
says anything about the expert.
"""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from adapters_registry.errors import Problem
from adapters_registry.records import AdapterRecord, QualityGate, utc_now
from routers.evaluation.answer_metrics import metric
from routers.maths.even_sample import evenly_spaced
from server.engine.asking import ask
from server.engine.errors import EngineFault, EngineRefused
from server.engine.pool import EnginePool
from server.engine.recipes import Base, Recipe, Single
from server.errors import GatewayError

NUM_PROMPTS = 3
MAX_PROMPT_CHARS = 400
MAX_OTHERS = 2
MIN_DISTANCE = 1e-4
"""Below this, in nats, two readings are the same whatever the noise says."""

NOISE_FACTOR = 3.0
MAX_PARALLEL = 8
NEUTRAL_PROMPTS = (
    "Answer in one sentence: what is this text about? The train to the coast leaves at noon.",
    "Rewrite as a list: apples, pears and plums.",
)
"""For experts without examples."""


class EngineBusy(Exception):
    """The engine could not be asked; the probe has to be tried again."""


class CannotProbe(Exception):
    """The engine answers, but not even for the base in the way that probes need."""


@dataclass(frozen=True, slots=True)
class Report:
    """What the probes found; `figures` in nats, seconds, bytes and scores."""

    problems: tuple[Problem, ...]
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether the expert may be offered."""
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        """As it is kept in the expert's record."""
        problems = [{"where": p.where, "what": p.what, "fix": p.fix} for p in self.problems]
        return {"passed": self.passed, "at": utc_now().isoformat(), **self.figures, "problems": problems}


Reading = list[list[float]]
"""Log-probabilities of each prompt's tokens but the first."""


class Prober:
    """Asks the engines.

    Args:
        pool: The engines.
    """

    def __init__(self, pool: EnginePool) -> None:
        self._pool = pool
        self._places = asyncio.Semaphore(MAX_PARALLEL)

    async def probe(self, record: AdapterRecord, others: Sequence[AdapterRecord]) -> Report:
        """Probe an expert beside others; raises `EngineBusy`, `CannotProbe`."""
        prompts = _prompts(record.examples)
        expert = Single(record.expert_id)
        strangers = [other for other in others if other.sha256 != record.sha256 and other.name != record.name]
        strangers = sorted(strangers, key=lambda other: other.created_at)[-MAX_OTHERS:]
        first = prompts[:1]
        try:
            base_alone = await self._read(Base(), first)
        except EngineRefused as refusal:
            raise CannotProbe(f"the engine refuses to read a prompt under the base ({refusal})") from refusal
        try:
            started = time.perf_counter()
            alone = await self._read(expert, first)
            first_s = time.perf_counter() - started
            base, own, *foreign = await asyncio.gather(
                self._read(Base(), prompts),
                self._read(expert, prompts),
                *(self._read(Single(other.expert_id), first) for other in strangers),
            )
        except EngineRefused as refusal:
            return _refused(record, str(refusal))
        figures: dict[str, Any] = {
            "num_prompts": len(prompts),
            "load_s": round(first_s, 4),
            "size_bytes": record.size_bytes,
            "noise": distance(base_alone, base[:1]),
            "base_distance": distance(base, own),
            "repeat_distance": distance(alone, own[:1]),
        }
        near = {o.expert_id: distance(own[:1], r) for o, r in zip(strangers, foreign, strict=True)}
        if near:
            nearest = min(near, key=lambda expert_id: near[expert_id])
            figures["nearest_other"] = {"expert": nearest, "distance": near[nearest]}
        problems = _problems(figures, near)
        gate = record.publish.gate
        if gate is not None and not problems:
            figures["score"] = await self._score(expert, gate)
            problems = _gate_problems(figures["score"], gate)
        return Report(tuple(problems), figures)

    async def _score(self, expert: Recipe, gate: QualityGate) -> float:
        """The mean score of the expert's answers to the gate's samples, in [0, 1]."""
        score = metric(gate.metric)

        async def one(prompt: str, wanted: str) -> float:
            fields = {
                "messages": [{"role": "user", "content": prompt}],
                "temperature": 0,
                "max_tokens": gate.max_tokens,
            }
            try:
                answer = await self._ask("/v1/chat/completions", fields, expert)
                return score(str(answer["choices"][0]["message"]["content"]), wanted)
            except (EngineRefused, KeyError, IndexError, TypeError):
                return 0.0

        scores = await asyncio.gather(*(one(sample.prompt, sample.answer) for sample in gate.samples))
        return sum(scores) / len(scores)

    async def _read(self, recipe: Recipe, prompts: Sequence[str]) -> Reading:
        return list(await asyncio.gather(*(self._read_one(recipe, prompt) for prompt in prompts)))

    async def _read_one(self, recipe: Recipe, prompt: str) -> list[float]:
        fields = {"prompt": prompt, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
        answer = await self._ask("/v1/completions", fields, recipe)
        try:
            choice = answer["choices"][0]
            places = choice.get("prompt_logprobs") or answer.get("prompt_logprobs") or []
            found = [_logprob(place) for place in places if place is not None]
        except (KeyError, IndexError, TypeError, AttributeError):
            raise CannotProbe("the engine gives no log-probabilities of prompts") from None
        if not found:
            raise CannotProbe("the engine gives no log-probabilities of prompts")
        return found

    async def _ask(self, path: str, fields: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
        """Raises EngineRefused, or `EngineBusy` for all other faults."""
        async with self._places:
            try:
                return await ask(self._pool, path, fields, recipe, f"probe-{uuid.uuid4().hex}")
            except EngineRefused:
                raise
            except (GatewayError, EngineFault) as error:
                raise EngineBusy(str(error)) from error


def distance(one: Reading, other: Reading) -> float:
    """The largest over prompts of the mean absolute difference of log-probabilities; NaN if any is not finite."""
    largest = 0.0
    for ours, theirs in zip(one, other, strict=True):
        if len(ours) != len(theirs) or not ours:
            return math.nan
        mean = sum(abs(a - b) for a, b in zip(ours, theirs, strict=True)) / len(ours)
        if not math.isfinite(mean):
            return math.nan
        largest = max(largest, mean)
    return largest


def _logprob(place: Mapping[str, Any]) -> float:
    value = next(iter(place.values()))["logprob"]
    return math.nan if value is None else float(value)


def _prompts(examples: Sequence[str]) -> list[str]:
    """A few of the examples; a prompt of one word may be one token, which nothing stands before."""
    usable = [text[:MAX_PROMPT_CHARS] for text in examples if len(text[:MAX_PROMPT_CHARS].split()) > 1]
    return [usable[row] for row in evenly_spaced(len(usable), NUM_PROMPTS).tolist()] or list(NEUTRAL_PROMPTS)


def _problems(figures: dict[str, Any], near: Mapping[str, float]) -> list[Problem]:
    base, noise, repeat = figures["base_distance"], figures["noise"], figures["repeat_distance"]
    if not all(map(math.isfinite, (base, noise, repeat, *near.values()))):
        for name in ("base_distance", "noise", "repeat_distance"):
            figures[name] = figures[name] if math.isfinite(figures[name]) else None
        figures.pop("nearest_other", None)
        fix = "Look for values in the weights that overflow in the engine's number format, or serve in float32."
        return [Problem("probe.finite", "the engine's log-probabilities under this expert are not finite", fix)]
    least = max(MIN_DISTANCE, NOISE_FACTOR * noise)
    problems = []
    if base <= least:
        what = f"answers as the base does (distance {base:.2g}, at least {least:.2g} is needed)"
        problems.append(Problem("probe.effect", what, "Check that the training changed the adapter's weights."))
    elif repeat > max(least, base / 2):
        what = f"does not answer alike when asked again (distance {repeat:.2g}, to the base {base:.2g})"
        problems.append(Problem("probe.identity", what, "Restart the engine and register the adapter again."))
    if problems:
        return problems
    for expert_id, apart in near.items():
        if apart <= min(least, base / 2):
            what = f"gives the answers of {expert_id} (distance {apart:.2g})"
            fix = "If it is a copy, register it as a version of that expert; else restart the engine and try again."
            problems.append(Problem("probe.identity", what, fix))
    return problems


def _gate_problems(score: float, gate: QualityGate) -> list[Problem]:
    if score >= gate.min_score:
        return []
    what = f"scores {score:.3f} by {gate.metric} on {len(gate.samples)} samples; {gate.min_score:g} is wanted"
    return [Problem("probe.gate", what, "Train it further, or lower publish.gate.min_score.")]


def _refused(record: AdapterRecord, message: str) -> Report:
    fix = "Correct what the engine says and register the adapter again."
    return Report(
        (Problem("probe.load", f"the engine refuses it ({message})", fix),), {"size_bytes": record.size_bytes}
    )
