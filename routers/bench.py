"""What routing costs on top of the embedding: ``python -m routers.bench [--experts 12 100 10000] [--routers knn ...]``.

Libraries are synthetic: unit vectors around one random direction for each expert. Reported are the median and 99th
percentile of one decision on one thread, the time of a fit, of a load, and of both together when one expert has come
since, the memory that the router holds, and how often the first candidate is the expert that the prompt is near.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from routers.base import FitData, LibraryExpert, Matrix, RouteQuery, no_progress
from routers.fitting import fit_data
from routers.registry import make_config, router_class

DIM = 384
NOISE = 1.1


def library(num_experts: int, num_examples: int, seed: int = 0) -> tuple[FitData, Matrix]:
    """A library, and the direction of each of its experts."""
    rng = np.random.default_rng(seed)
    directions = _unit(rng.normal(size=(num_experts, DIM)))
    embeddings, experts = {}, []
    for number, direction in enumerate(directions):
        expert = f"expert-{number:05d}@{number:08x}"
        noise = rng.normal(size=(num_examples, DIM)) / np.sqrt(DIM)
        embeddings[expert] = _unit(direction + NOISE * noise)
        texts = tuple(f"example {row} of expert {number}" for row in range(num_examples))
        experts.append(LibraryExpert(expert, examples=texts))

    def embed(texts: Sequence[str]) -> Matrix:
        return _unit(np.random.default_rng(len(texts)).normal(size=(len(texts), DIM)))

    return replace(fit_data(experts, embeddings, "synthetic", version="synthetic"), embed=embed), directions


def measure(name: str, grown: FitData, directions: Matrix, num_queries: int) -> str:
    """One line of the table; the library has one expert more than are fitted first."""
    data, directions = replace(grown, experts=grown.experts[:-1]), directions[:-1]
    rng = np.random.default_rng(1)
    asked = rng.integers(0, len(directions), num_queries)
    noise = rng.normal(size=(num_queries, DIM)) / np.sqrt(DIM)
    queries = _unit(directions[asked] + NOISE * noise)
    config = make_config(name, {})
    started, before = time.perf_counter(), _resident_mib()
    artefact = router_class(name).fit(config, data, no_progress)
    fitted = time.perf_counter()
    router = router_class(name).load(config, artefact)
    loaded = time.perf_counter()
    again = router_class(name).fit(config, replace(grown, previous=router), no_progress)
    router_class(name).load(config, again)
    followed = time.perf_counter()
    times, right = [], 0
    for row, own in zip(queries, asked.tolist(), strict=True):
        query = RouteQuery("a prompt", row, parts=np.repeat(row[None], 4, axis=0))
        begun = time.perf_counter()
        decision = router.route(query)
        times.append(time.perf_counter() - begun)
        right += bool(decision.candidates) and decision.candidates[0].expert_id == data.experts[own].expert_id
    p50, p99 = np.percentile(np.array(times[len(times) // 10 :]) * 1000, [50, 99])
    size = f"{len(directions):,} | {len(data.experts[0].examples)}"
    return (
        f"| {name} | {size} | {p50:.2f} | {p99:.2f} | "
        f"{fitted - started:.1f} | {loaded - fitted:.1f} | {followed - loaded:.1f} | {_resident_mib() - before:.0f} | "
        f"{100 * right / num_queries:.1f} |"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(prog="python -m routers.bench", description="What routing costs.")
    parser.add_argument("--experts", type=int, nargs="+", default=[12, 100, 1000, 10_000])
    parser.add_argument("--examples", type=int, default=20)
    parser.add_argument("--routers", nargs="+", default=["knn", "centroid"])
    parser.add_argument("--queries", type=int, default=500)
    options = parser.parse_args(arguments)
    print("| router | experts | examples each | p50 ms | p99 ms | fit s | load s | one more s | MiB more | right % |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for num_experts in options.experts:
        data, directions = library(num_experts + 1, options.examples)
        for name in options.routers:
            print(measure(name, data, directions, options.queries), flush=True)


def _resident_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _unit(rows: NDArray[np.floating[Any]]) -> Matrix:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


if __name__ == "__main__":
    main()
