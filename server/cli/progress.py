"""Progress bars by phase, and running asynchronous work from a command."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from routers.errors import RouterError
from server.cli.client import ClientError


@contextlib.contextmanager
def phases() -> Iterator[Callable[[str, int, int], None]]:
    """Provide a function that shows each phase's progress; the bars stay after the work has ended."""
    columns = (TextColumn("{task.description:12}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bars:
        tasks = {}

        def progress(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase, total=total)
            bars.update(tasks[phase], completed=done, total=total)

        yield progress


def run_to_end(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run asynchronous work; of several concurrent errors the first is raised.

    Raises:
        ClientError: The gateway cannot be reached or refuses.
    """
    from server.compare.client import CompareError

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
