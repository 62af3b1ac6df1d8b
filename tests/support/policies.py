"""Policy managers on a folder, a clock that tests set, and what is read from both."""

import time
from collections.abc import Callable
from pathlib import Path

from routers.artefacts import ArtefactStore
from routers.embedders.base import Encoder
from routers.embedders.batching import BatchingEmbedder
from routers.embedders.hashing import HashingEncoder
from server.jobs import Job
from server.policies.definitions import PolicySpec, PolicyStore
from server.policies.embedders import Embedders
from server.policies.manager import PolicyManager
from server.policies.scores import ScoreStore
from server.policies.vectors import VectorStore
from server.settings import PolicySettings
from server.telemetry.metrics import Metrics
from tests.support.waiting import eventually

WAIT_S = 60.0
"""After this time a wait fails, also on a machine that is busy."""


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def manager(
    root: Path,
    embedder: BatchingEmbedder,
    router: str = "knn",
    *,
    metrics: Metrics | None = None,
    clock: Callable[[], float] = time.monotonic,
    open_encoder: Callable[[str], Encoder] = lambda name: HashingEncoder(16),
    **options: object,
) -> PolicyManager:
    """Create a manager with the policy ``auto``; managers on one folder are gateways on one home."""
    return PolicyManager(
        [PolicySpec("auto", PolicySettings(router=router, options=dict(options)))],
        Embedders(embedder, open_encoder, 10),
        ArtefactStore(root / "policies"),
        definitions(root),
        scores(root),
        metrics or Metrics(max_experts=3, prices={}),
        VectorStore(root / "vectors.sqlite"),
        clock=clock,
    )


def definitions(root: Path) -> PolicyStore:
    """Open the definitions of a manager on this folder, as another gateway does."""
    return PolicyStore(root / "policies")


def scores(root: Path) -> ScoreStore:
    """Open the table of scores of a manager on this folder."""
    return ScoreStore(root / "scores")


def policy_gauge(metrics: Metrics, name: str, policy: str = "auto") -> float | None:
    """Return the value of ``moergate_policy_NAME`` for a policy; None if there is no such series."""
    return metrics.registry.get_sample_value(f"moergate_policy_{name}", {"policy": policy})


async def ended(job: Job) -> Job:
    """Wait for the end of a job."""
    await eventually(lambda: job.ended)
    return job
