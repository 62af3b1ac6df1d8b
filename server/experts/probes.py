"""Probes: whether the engine really answers with an expert, checked before the expert is offered.

The engine reads a few of the expert's examples under the expert, under the base and under other experts, all in one
batch, and returns the log-probability of every token that it read; the first prompt is also read alone. From these:

distance        mean absolute difference of the log-probabilities, in nats, of the prompt for which it is largest
base_distance   between expert and base: must exceed the noise, else the adapter has no effect
noise           of the base, between alone and in the batch
repeat_distance the same of the expert: must stay below `base_distance`, else the name does not always give this adapter
nearest_other   the smallest distance to another expert's content: must exceed the noise, else another expert answers
load_s          time of the first reading, with which the engine loads the adapter, in seconds

All figures must be finite. If the manifest has a quality gate, the expert also answers the gate's samples, and their
mean score decides. `EngineBusy` means that the engine cannot be asked now, `CannotProbe` that it returns no
log-probabilities: neither says anything about the expert.
"""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adapters_registry.errors import Problem
from adapters_registry.records import AdapterRecord, NearestExpert, ProbeReport, QualityGate, utc_now
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
"""Below this, in nats, two readings count as equal whatever the noise is."""

NOISE_FACTOR = 3.0
MAX_PARALLEL = 8
NEUTRAL_PROMPTS = (
    "Answer in one sentence: what is this text about? The train to the coast leaves at noon.",
    "Rewrite as a list: apples, pears and plums.",
)
"""Prompts for experts without examples."""


class EngineBusy(Exception):
    """The engine could not be asked; the probe must be tried again."""


class CannotProbe(Exception):
    """The engine answers, but not in the way that probes need, even for the base."""


Reading = list[list[float]]
"""Log-probabilities of each prompt's tokens except the first."""


@dataclass(frozen=True, slots=True)
class Distances:
    """Distances between readings, in nats.

    Attributes:
        base: Between expert and base.
        noise: Between the base alone and the base in a batch.
        repeat: Between the expert alone and the expert in a batch.
        others: Between the expert and other experts, by their ids.
    """

    base: float
    noise: float
    repeat: float
    others: Mapping[str, float]


class Prober:
    """Probes experts on the engines of a pool."""

    def __init__(self, pool: EnginePool) -> None:
        self._pool = pool
        self._slots = asyncio.Semaphore(MAX_PARALLEL)

    async def probe(self, record: AdapterRecord, others: Sequence[AdapterRecord]) -> ProbeReport:
        """Probe an expert beside others; raises `EngineBusy`, `CannotProbe`."""
        prompts = choose_prompts(record.examples)
        expert = Single(record.expert_id)
        others = [other for other in others if other.sha256 != record.sha256 and other.name != record.name]
        others = sorted(others, key=lambda other: other.created_at)[-MAX_OTHERS:]
        first = prompts[:1]
        try:
            base_alone = await self._read(Base(), first)
        except EngineRefused as refusal:
            raise CannotProbe(f"the engine refuses to read a prompt under the base ({refusal})") from refusal
        try:
            started = time.perf_counter()
            alone = await self._read(expert, first)
            load_s = time.perf_counter() - started
            base, own, *readings = await asyncio.gather(
                self._read(Base(), prompts),
                self._read(expert, prompts),
                *(self._read(Single(other.expert_id), first) for other in others),
            )
        except EngineRefused as refusal:
            return _refused(record, str(refusal))
        apart = Distances(
            base=distance(base, own),
            noise=distance(base_alone, base[:1]),
            repeat=distance(alone, own[:1]),
            others={o.expert_id: distance(own[:1], r) for o, r in zip(others, readings, strict=True)},
        )
        problems, score = find_problems(apart), None
        gate = record.publish.gate
        if gate is not None and not problems:
            score = await self._score(expert, gate)
            problems = _gate_problems(score, gate)
        return ProbeReport(
            at=utc_now(),
            num_prompts=len(prompts),
            load_s=round(load_s, 4),
            size_bytes=record.size_bytes,
            noise=_finite(apart.noise),
            base_distance=_finite(apart.base),
            repeat_distance=_finite(apart.repeat),
            nearest_other=_nearest(apart.others),
            score=score,
            problems=tuple(problems),
        )

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
            tokens = choice.get("prompt_logprobs") or answer.get("prompt_logprobs") or []
            found = [_logprob(token) for token in tokens if token is not None]
        except (KeyError, IndexError, TypeError, AttributeError):
            raise CannotProbe("the engine returns no log-probabilities of prompts") from None
        if not found:
            raise CannotProbe("the engine returns no log-probabilities of prompts")
        return found

    async def _ask(self, path: str, fields: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
        """Ask the engine; raises EngineRefused, and `EngineBusy` for all other faults."""
        async with self._slots:
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


def choose_prompts(examples: Sequence[str]) -> list[str]:
    """A few of the examples, evenly spaced and shortened; neutral prompts if there is none.

    A prompt of one word is skipped: it may be one token, and the first token of a prompt has no log-probability.
    """
    usable = [text[:MAX_PROMPT_CHARS] for text in examples if len(text[:MAX_PROMPT_CHARS].split()) > 1]
    return [usable[row] for row in evenly_spaced(len(usable), NUM_PROMPTS).tolist()] or list(NEUTRAL_PROMPTS)


def find_problems(apart: Distances) -> list[Problem]:
    """What the distances say against an expert."""
    if not all(map(math.isfinite, (apart.base, apart.noise, apart.repeat, *apart.others.values()))):
        fix = "Look for values in the weights that overflow in the engine's number format, or serve in float32."
        return [Problem("probe.finite", "the engine's log-probabilities under this expert are not finite", fix)]
    least = max(MIN_DISTANCE, NOISE_FACTOR * apart.noise)
    if apart.base <= least:
        what = f"answers as the base does (distance {apart.base:.2g}, at least {least:.2g} is needed)"
        return [Problem("probe.effect", what, "Check that the training changed the adapter's weights.")]
    if apart.repeat > max(least, apart.base / 2):
        what = f"answers differently when asked again (distance {apart.repeat:.2g}, to the base {apart.base:.2g})"
        return [Problem("probe.identity", what, "Restart the engine and register the adapter again.")]
    fix = "If it is a copy, register it as a version of that expert; otherwise restart the engine and try again."
    return [
        Problem("probe.identity", f"gives the answers of {expert_id} (distance {found:.2g})", fix)
        for expert_id, found in apart.others.items()
        if found <= min(least, apart.base / 2)
    ]


def _logprob(token: Mapping[str, Any]) -> float:
    value = next(iter(token.values()))["logprob"]
    return math.nan if value is None else float(value)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _nearest(others: Mapping[str, float]) -> NearestExpert | None:
    if not others or not all(map(math.isfinite, others.values())):
        return None
    nearest = min(others, key=lambda expert_id: others[expert_id])
    return NearestExpert(expert=nearest, distance=others[nearest])


def _gate_problems(score: float, gate: QualityGate) -> list[Problem]:
    if score >= gate.min_score:
        return []
    what = f"scores {score:.3f} by {gate.metric} on {len(gate.samples)} samples; the gate requires {gate.min_score:g}"
    return [Problem("probe.gate", what, "Train it further, or lower publish.gate.min_score.")]


def _refused(record: AdapterRecord, message: str) -> ProbeReport:
    fix = "Correct what the engine reports and register the adapter again."
    problem = Problem("probe.load", f"the engine refuses it ({message})", fix)
    return ProbeReport(at=utc_now(), size_bytes=record.size_bytes, problems=(problem,))
