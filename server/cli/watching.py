"""Watches a job of the gateway from the command line."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn

from server.cli.client import ClientError, call

POLL_S = 0.2
"""Interval between two polls of a job."""


def watch_job(
    job: dict[str, Any], url: str, api_key: str | None, cancelled: str, *, in_bytes: bool = False
) -> dict[str, Any]:
    """Show a job's progress until it ends; returns the ended job.

    Args:
        job: The job as the gateway returned it.
        url, api_key: Address and key of the gateway.
        cancelled: Message for an interrupt by the user, which cancels the job.
        in_bytes: Whether the job's steps are bytes.

    Raises:
        ClientError: The gateway cannot be reached or refuses, or the user interrupts.
    """
    steps: ProgressColumn = (
        DownloadColumn(binary_units=True) if in_bytes else TextColumn("{task.completed}/{task.total}")
    )
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
