"""Registrations from remote sources: background jobs that fetch the files first, a few at a time."""

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
"""Maximum number of concurrent downloads, which share the process, disk and network with traffic."""

MAX_WAITING = 100

Register = Callable[[Manifest, Path], Coroutine[Any, Any, dict[str, Any]]]
"""Registers fetched files; returns the record as the admin API shows it."""

log = structlog.get_logger(__name__)


class Imports:
    """Fetches adapters from remote sources and registers them.

    Args:
        fetcher: Fetches a source's files.
        jobs: Shows the jobs to callers.
    """

    def __init__(self, fetcher: SourceFetcher, jobs: Jobs) -> None:
        self._fetcher = fetcher
        self._jobs = jobs
        self._slots = asyncio.Semaphore(MAX_AT_ONCE)
        self._running: dict[asyncio.Task[None], tuple[Manifest, Job]] = {}

    def submit(self, manifest: Manifest, register: Register) -> Job:
        """Begin to fetch a manifest's source; a manifest that is already in progress keeps its job.

        Raises PermissionDenied, BadSource, BadRequest, TooManyRequests.
        """
        if manifest.source is None:
            raise BadRequest("The manifest has no source.", param="source")
        self._fetcher.check(manifest.source)
        for other, job in self._running.values():
            if other == manifest and not job.ended:
                return job
        if len(self._running) >= MAX_AT_ONCE + MAX_WAITING:
            raise TooManyRequests(f"{MAX_WAITING} downloads are already waiting; try again later.", retry_after_s=30)
        job = self._jobs.open("import", manifest.name)
        task = asyncio.create_task(self._run(manifest, job, register))
        job.on_cancel = task.cancel
        self._running[task] = manifest, job
        task.add_done_callback(self._ended)
        return job

    async def clean_up(self) -> None:
        """Remove abandoned downloads."""
        await asyncio.to_thread(self._fetcher.remove_old)

    async def close(self) -> None:
        """Cancel all downloads; partial downloads stay, to be resumed."""
        tasks = list(self._running)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, manifest: Manifest, job: Job, register: Register) -> None:
        try:
            async with self._slots:
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
        if source is None:  # `submit` has checked it
            raise BadRequest("The manifest has no source.", param="source")
        async with self._fetcher.fetch(source, progress) as fetched:
            progress("registering", 0, 0)
            job.on_cancel = None  # registering is short, and must not stop half-way
            return await run_to_completion(register(from_source(manifest, fetched.provenance), fetched.path))

    def _ended(self, task: asyncio.Task[None]) -> None:
        _, job = self._running.pop(task)
        job.on_cancel = None
        if not job.ended:  # cancelled, perhaps before it began
            job.end("cancelled")


def from_source(manifest: Manifest, provenance: Provenance) -> Manifest:
    """The manifest with its true origin on the card, whatever the card said."""
    return manifest.model_copy(update={"card": manifest.card.model_copy(update={"obtained_from": provenance})})


def _fail(job: Job, error: GatewayError) -> None:
    job.problems = error.problems
    job.end("failed", error.message)
