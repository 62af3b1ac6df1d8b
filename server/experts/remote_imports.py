"""Registrations whose files have to be fetched first: jobs in the background, a few at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import structlog

from adapters_registry.disk.uncancelled import run_to_completion
from adapters_registry.records import Manifest
from adapters_registry.sources import Provenance
from server.errors import BadRequest, GatewayError, TooManyRequests, from_lower
from server.jobs import Job, JobCancelled, Jobs
from server.sources.fetching import SourceFetcher

MAX_AT_ONCE = 2
"""Downloads that run at once; they share the gateway's process, disk and network with traffic."""

MAX_WAITING = 100

Register = Callable[[Manifest, Path], Coroutine[Any, Any, dict[str, Any]]]
"""Registers fetched files, and tells the record as the admin API shows it."""

log = structlog.get_logger(__name__)


class Imports:
    """Fetches and registers.

    Args:
        fetcher: What fetches.
        jobs: Where jobs are watched.
    """

    def __init__(self, fetcher: SourceFetcher, jobs: Jobs) -> None:
        self._fetcher = fetcher
        self._jobs = jobs
        self._places = asyncio.Semaphore(MAX_AT_ONCE)
        self._running: dict[asyncio.Task[None], tuple[Manifest, Job]] = {}

    def submit(self, manifest: Manifest, register: Register) -> Job:
        """Begin to fetch a manifest's source; the same manifest that is under way already is the same job.

        Raises PermissionDenied, BadSource, BadRequest, TooManyRequests.
        """
        if manifest.source is None:
            raise BadRequest("The manifest has no source.", param="source")
        self._fetcher.check(manifest.source)
        for other, job in self._running.values():
            if other == manifest and not job.ended:
                return job
        if len(self._running) >= MAX_AT_ONCE + MAX_WAITING:
            raise TooManyRequests(f"{MAX_WAITING} downloads wait already; try again later.", retry_after_s=30)
        job = self._jobs.open("import", manifest.name)
        task = asyncio.create_task(self._run(manifest, job, register))
        job.on_cancel = task.cancel
        self._running[task] = manifest, job
        task.add_done_callback(self._ended)
        return job

    async def clean_up(self) -> None:
        """Remove downloads that nobody has gone on with."""
        await asyncio.to_thread(self._fetcher.remove_old)

    async def close(self) -> None:
        """End all downloads; what has come of them stays for the next time."""
        tasks = list(self._running)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, manifest: Manifest, job: Job, register: Register) -> None:
        try:
            async with self._places:
                job.begin("connecting")
                job.result = await self._fetch_and_register(manifest, job, register)
            job.end("succeeded")
        except JobCancelled:
            job.end("cancelled")
        except Exception as error:
            known = from_lower(error)
            if known.status == 500:
                log.exception("import failed", expert=manifest.name, exc_info=error)
            _fail(job, known)

    async def _fetch_and_register(self, manifest: Manifest, job: Job, register: Register) -> dict[str, Any]:
        def progress(phase: str, done: int, total: int) -> None:
            if phase != job.phase:
                job.begin(phase)
            job.progress(done, total)

        source = manifest.source
        if source is None:  # `submit` has seen to it
            raise BadRequest("The manifest has no source.", param="source")
        async with self._fetcher.fetch(source, progress) as fetched:
            progress("registering", 0, 0)
            job.on_cancel = None  # from here it is short, and half of it would help nobody
            return await run_to_completion(register(from_source(manifest, fetched.provenance), fetched.path))

    def _ended(self, task: asyncio.Task[None]) -> None:
        _, job = self._running.pop(task)
        job.on_cancel = None
        if not job.ended:  # cancelled, perhaps before it had begun
            job.end("cancelled")


def from_source(manifest: Manifest, provenance: Provenance) -> Manifest:
    """The manifest with where it came from on its card, whatever it said of that itself."""
    return manifest.model_copy(update={"card": manifest.card.model_copy(update={"obtained_from": provenance})})


def _fail(job: Job, error: GatewayError) -> None:
    job.problems = error.problems
    job.end("failed", error.message)
