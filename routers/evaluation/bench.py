"""Benchmark of routing without the embedding: ``python -m routers.evaluation.bench [--routers knn centroid]``.

Libraries are synthetic: each expert has unit vectors around one random direction, and texts from its own templates with
common words and words of its own subject. The table shows:

* the median and 99th percentile of one decision on one thread;
* the time of a fit, of a load, and of both together after one expert was added (also as CPU time);
* how many texts that embedded in addition to the library's examples;
* the memory that the router takes;
* how often the first candidate is the expert that the prompt is near.
"""

from __future__ import annotations

import argparse
import resource
import time
import zlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from routers.base import FitData, LibraryExpert, Matrix, RouteQuery, no_progress
from routers.fitting import fit_data
from routers.maths.unit_rows import to_unit
from routers.registry import make_config, router_class

DIM = 384
NOISE = 1.1
COMMON, VOCABULARY = 500, 30_000


def library(num_experts: int, num_examples: int, seed: int = 0) -> tuple[FitData, Matrix]:
    """Make a library, and return the direction of each of its experts too."""
    rng = np.random.default_rng(seed)
    directions = to_unit(rng.normal(size=(num_experts, DIM)).astype(np.float32))
    embeddings, experts = {}, []
    for number, direction in enumerate(directions):
        expert = f"expert-{number:05d}@{number:08x}"
        noise = rng.normal(size=(num_examples, DIM)) / np.sqrt(DIM)
        embeddings[expert] = to_unit((direction + NOISE * noise).astype(np.float32))
        experts.append(LibraryExpert(expert, examples=_texts(num_examples, rng)))
    return replace(fit_data(experts, embeddings, "synthetic", version="synthetic"), embed=Encode()), directions


class Encode:
    """A stand-in for an embedder: its rows depend on the text alone, and it counts the texts."""

    def __init__(self) -> None:
        self.num = 0

    def __call__(self, texts: Sequence[str]) -> Matrix:
        """Return unit rows, shape (len(texts), DIM)."""
        self.num += len(texts)
        return to_unit(np.array([_noise(text) for text in texts], np.float32).reshape(len(texts), DIM))


@cache
def _noise(text: str) -> Matrix:
    return np.asarray(np.random.default_rng(zlib.crc32(text.encode())).normal(size=DIM), np.float32)


def _texts(num: int, rng: np.random.Generator) -> tuple[str, ...]:
    """Make the examples of one expert: an instruction before or after 5 to 30 words."""
    subject = [_word(int(rank)) for rank in rng.integers(COMMON, VOCABULARY, 40)]
    templates = [" ".join(_word(int(rank)) for rank in rng.zipf(1.3, 8) % VOCABULARY) for _ in range(2)]
    texts = []
    for number in range(num):
        common = [_word(int(rank)) for rank in rng.zipf(1.3, int(rng.integers(3, 18))) % VOCABULARY]
        words = rng.permutation([*common, *rng.choice(subject, int(rng.integers(2, 12)))])
        content = f"{' '.join(words)}."
        texts.append(f"{templates[0]}: {content}" if number % 2 else f"{content}\n{templates[1]}?")
    return tuple(texts)


@cache
def _word(rank: int) -> str:
    """Make a word; rarer words are longer."""
    syllables: list[str] = []
    while rank or not syllables:
        rank, place = divmod(rank, 75)
        syllables.append("bdfghklmnprstvz"[place // 5] + "aeiou"[place % 5])
    return "".join(syllables)


def measure(name: str, grown: FitData, directions: Matrix, num_queries: int) -> str:
    """Measure one line of the table; the first fit leaves out the library's last expert."""
    data, directions = replace(grown, experts=grown.experts[:-1]), directions[:-1]
    rng = np.random.default_rng(1)
    asked = rng.integers(0, len(directions), num_queries)
    noise = rng.normal(size=(num_queries, DIM)) / np.sqrt(DIM)
    queries = to_unit((directions[asked] + NOISE * noise).astype(np.float32))
    config = make_config(name, {})
    started, before = time.perf_counter(), _resident_mib()
    artefact = router_class(name).fit(config, data, no_progress)
    fitted = time.perf_counter()
    router = router_class(name).load(config, artefact)
    loaded, embed, worked = time.perf_counter(), Encode(), time.process_time()
    again = router_class(name).fit(config, replace(grown, previous=router, embed=embed), no_progress)
    router_class(name).load(config, again)
    followed, worked = time.perf_counter(), time.process_time() - worked
    times, right = [], 0
    for row, own in zip(queries, asked.tolist(), strict=True):
        query = RouteQuery(data.experts[own].examples[0], row, parts=np.repeat(row[None], 4, axis=0))
        begun = time.perf_counter()
        decision = router.route(query)
        times.append(time.perf_counter() - begun)
        right += bool(decision.candidates) and decision.candidates[0].expert_id == data.experts[own].expert_id
    p50, p99 = np.percentile(np.array(times[len(times) // 10 :]) * 1000, [50, 99])
    size = f"{len(directions):,} | {len(data.experts[0].examples)}"
    return (
        f"| {name} | {size} | {p50:.2f} | {p99:.2f} | "
        f"{fitted - started:.1f} | {loaded - fitted:.1f} | {followed - loaded:.2f} | {worked:.2f} | {embed.num} | "
        f"{_resident_mib() - before:.0f} | {100 * right / num_queries:.1f} |"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        prog="python -m routers.evaluation.bench", description="Measure what routing costs."
    )
    parser.add_argument("--experts", type=int, nargs="+", default=[12, 100, 1000, 10_000])
    parser.add_argument("--examples", type=int, default=20)
    parser.add_argument("--routers", nargs="+", default=["knn", "centroid"])
    parser.add_argument("--queries", type=int, default=500)
    options = parser.parse_args(arguments)
    print(
        "| router | experts | examples each | p50 ms | p99 ms | fit s | load s | one more s | its CPU s "
        "| embedded | MiB more | right % |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for num_experts in options.experts:
        data, directions = library(num_experts + 1, options.examples)
        for name in options.routers:
            print(measure(name, data, directions, options.queries), flush=True)


def _resident_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
