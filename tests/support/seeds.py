"""Fresh random inputs that can be repeated: ``MOERGATE_TEST_SEED=… pytest …`` gives each test the inputs of that run.

The hooks in ``tests/conftest.py`` draw the run's seed and show it; the fixtures `fresh_seed` and `rng` there use it.
"""

from __future__ import annotations

import hashlib
import os
import secrets

import pytest

VARIABLE = "MOERGATE_TEST_SEED"
RUN_SEED = pytest.StashKey[int]()


def take_run_seed() -> int:
    """Return the seed that the environment gives, else a fresh one.

    The variable is taken out of the environment: the gateway refuses variables that are not settings.
    """
    return int(os.environ.pop(VARIABLE, "") or secrets.randbits(31))


def seed_of(node: pytest.Item | pytest.Collector) -> int:
    """Return the seed of one test, or of a module's fixture; it does not depend on which other tests run."""
    digest = hashlib.sha256(f"{node.config.stash[RUN_SEED]} {node.nodeid}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
