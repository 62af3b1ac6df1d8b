"""What tests ask of a gateway over HTTP again and again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

from tests.support.waiting import eventually


async def answers(client: httpx.AsyncClient, path: str, status: int, headers: Mapping[str, str] | None = None) -> bool:
    """Whether a GET is answered with this status."""
    return (await client.get(path, headers=headers)).status_code == status


async def job_ended(client: httpx.AsyncClient, status_url: str) -> dict[str, Any]:
    """Wait for the end of a job; returns the job."""
    job: dict[str, Any] = {}

    async def has_ended() -> bool:
        job.update((await client.get(status_url)).json())
        return job["ended_at"] is not None

    await eventually(has_ended, within=60, message=lambda: f"{job} has not ended")
    return job
