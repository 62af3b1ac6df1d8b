"""Progress bars by phase, watching a job of the gateway, and running something asynchronous from a command."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from routers.errors import RouterError
from server.cli.client import ClientError, call
from server.compare.client import CompareError

POLL_S = 0.2
"""Between two looks at a job."""


@contextlib.contextmanager
def phases() -> Iterator[Callable[[str, int, int], None]]:
    """A function that shows how far each phase is; the bars stay when the work has ended."""
    columns = (TextColumn("{task.description:12}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bars:
        tasks = {}

        def progress(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase, total=total)
            bars.update(tasks[phase], completed=done, total=total)

        yield progress


def watch_job(
    job: dict[str, Any], url: str, api_key: str | None, cancelled: str, *, in_bytes: bool = False
) -> dict[str, Any]:
    """Show how far a job of the gateway is until it has ended; returns it.

    Args:
        job: As the gateway showed it.
        url, api_key: Of the gateway.
        cancelled: What to say when the user interrupts, which cancels the job.
        in_bytes: Whether its steps are bytes.

    Raises:
        ClientError: The gateway cannot be reached or refuses, or the user interrupts.
    """
    steps = DownloadColumn(binary_units=True) if in_bytes else TextColumn("{task.completed}/{task.total}")
    columns = (TextColumn("{task.description}"), BarColumn(), steps, TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task("waiting", total=None)
        try:
            while job["ended_at"] is None:
                total = job["total"] or None
                bars.update(bar, description=job["phase"] or "waiting", completed=job["done"], total=total)
                time.sleep(POLL_S)
                job = call("GET", url, f"/admin/jobs/{job['id']}", key=api_key)
        except KeyboardInterrupt:
            call("DELETE", url, f"/admin/jobs/{job['id']}", key=api_key)
            raise ClientError(cancelled, 130) from None
    return job


def run_to_end(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run to the end; of errors that came together the first one is raised.

    Raises:
        ClientError: The gateway cannot be reached or refuses.
    """
    try:
        asyncio.run(work())
    except (CompareError, RouterError, BaseExceptionGroup) as error:
        first = _first(error)
        if isinstance(first, (CompareError, RouterError)):
            raise ClientError(str(first), 1 if isinstance(first, CompareError) else 2) from None
        raise


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
