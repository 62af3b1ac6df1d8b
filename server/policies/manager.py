"""Policies of a running gateway: defined, fitted in the background, kept up to date, and swapped in whole.

`book` has the definitions and states, `fitter` fits one policy, `follower` decides when. This module adds jobs: fits
that an operator requested, and the first fit of a costly method. A job delays no other policy. A fitted policy
replaces the previous one in a single assignment, so no request is dropped.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from adapters_registry.records import AdapterRecord
from adapters_registry.visibility import Audience
from routers.artefacts import ArtefactStore
from routers.base import FitData, Losses
from routers.errors import NotFittable
from routers.fitting import unmet_needs
from server.jobs import Job, JobCancelled, Jobs
from server.policies.book import Cancelled, Entry, PolicyBook
from server.policies.definitions import PolicySpec, PolicyStore
from server.policies.embedders import Embedders
from server.policies.fit_data import PolicyData
from server.policies.fitter import Fitter, Superseded
from server.policies.follower import Follower
from server.policies.live import LivePolicy
from server.policies.method_cards import with_command
from server.policies.scores import ScoreStore
from server.policies.vectors import VectorStore
from server.telemetry.metrics import Metrics


class PolicyManager:
    """All policies of a gateway, and the jobs that fit them. `on_change` is called with every new set of policies.

    Args:
        specs: The policies of the settings.
        embedders: Embedders by name, for the library's examples.
        artefacts: The store of fitted artefacts.
        store: The definitions that were made through the admin API.
        scores: The table that some methods learn from.
        metrics: Shows stale and lagging policies.
        vectors: Keeps embeddings of examples across restarts.
        losses: Returns the engine, for methods that search for weights; None if there is none now.
        clock: Seconds, for retries.
    """

    def __init__(
        self,
        specs: Sequence[PolicySpec],
        embedders: Embedders,
        artefacts: ArtefactStore,
        store: PolicyStore,
        scores: ScoreStore,
        metrics: Metrics,
        vectors: VectorStore,
        losses: Callable[[], Losses | None] = lambda: None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._book = PolicyBook(specs, store)
        self._data = PolicyData(scores, vectors)
        self._embedders = embedders
        self._fitter = Fitter(artefacts, losses)
        self._follower = Follower(
            self._book,
            self._fitter,
            self._data,
            embedders,
            metrics,
            alone=store.alone,
            start_job=lambda entry: self._start(entry, afresh=False),
            announce=self._announce,
            clock=clock,
        )
        self._one_fit: dict[str, asyncio.Lock] = {}
        self._running: set[asyncio.Task[None]] = set()
        self.jobs = Jobs()
        self.on_change: Callable[[Mapping[str, LivePolicy]], None] = lambda _live: None

    # -- following the library ------------------------------------------------------------------------------------

    def note_library(self, records: Sequence[AdapterRecord]) -> None:
        """Note the library's experts; policies say how many of them they lack until they are fitted."""
        self._follower.note_library(records)

    async def refresh(self, records: Sequence[AdapterRecord]) -> dict[str, LivePolicy]:
        """Fit all policies to these experts; never raises, and keeps what served where a fit fails."""
        await self._follower.refresh(records)
        return self._announce()

    async def prepare(self, records: Sequence[AdapterRecord]) -> None:
        """Embed the examples of experts that will soon be in the library."""
        await self._follower.prepare(records)

    async def wants_refresh(self) -> bool:
        """Return whether there is work although the library has not changed; see `Follower.wants_refresh`."""
        return await self._follower.wants_refresh()

    @property
    def live(self) -> Mapping[str, LivePolicy]:
        """The policies that can decide, by name."""
        return self._book.live

    @property
    def missing(self) -> dict[str, str]:
        """Policies of the settings that cannot decide yet, and why."""
        return self._book.missing

    @property
    def pending(self) -> dict[str, Audience]:
        """All policies that cannot decide yet, with their audiences."""
        return self._book.pending

    # -- policies of the admin API --------------------------------------------------------------------------------

    async def create(self, spec: PolicySpec) -> Job:
        """Define or redefine a policy and fit it in the background.

        Raises:
            BadRequest: The settings define it, which this cannot change.
            RouterError: The router, an option or a need is wrong, with what to do.
        """
        await self._book.read_stored()
        self._book.refuse_settings(spec.name)
        entry = Entry.of(spec)
        if experts := self._follower.experts:
            table = await asyncio.to_thread(self._data.table, experts)
            given = FitData(experts, {}, "", "", scores=table, samples=spec.samples, losses=self._fitter.losses)
            for need, sentence in unmet_needs(entry.kind.card, given).items():
                raise NotFittable(with_command(sentence, need), need)
        await self._book.define(entry)
        self._announce()  # the new audience holds at once
        return self.refit(spec.name)

    def refit(self, name: str) -> Job:
        """Fit a policy again in the background, whether or not anything has changed; raises NotFound."""
        return self._start(self._book.get(name), afresh=True)

    async def remove(self, name: str) -> None:
        """Remove a policy with its artefacts; raises NotFound, or BadRequest for one of the settings."""
        await self._book.remove(name)
        self._announce()

    def describe(self) -> list[dict[str, Any]]:
        """Return every policy with its state, for operators."""
        return [self._book.describe(entry) for entry in self._book.entries]

    def describe_one(self, name: str) -> dict[str, Any]:
        """Return one policy with its state; raises NotFound."""
        return self._book.describe(self._book.get(name))

    async def close(self) -> None:
        """Cancel running fits."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._follower.close()

    # -- jobs -----------------------------------------------------------------------------------------------------

    def _start(self, entry: Entry, *, afresh: bool) -> Job:
        """Fit a policy in the background; unless `afresh`, another gateway's artefact of the same data will do."""
        job = self.jobs.open("fit", entry.spec.name)
        self._follower.num_jobs[entry.spec.name] += 1
        task = asyncio.create_task(self._run(job, entry, afresh=afresh))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return job

    async def _run(self, job: Job, entry: Entry, *, afresh: bool) -> None:
        version, follower = "", self._follower
        try:
            # Taken before the embedder's lock and never while holding that one, or two jobs could block each other.
            async with self._one_fit.setdefault(entry.spec.name, asyncio.Lock()):
                async with follower.gathering(entry.embedder):
                    job.begin("embedding examples")
                    experts = follower.experts
                    embedder = await self._embedders.get(entry.embedder)
                    version = await follower.version(entry, experts, embedder)
                    data = await self._data.gather(experts, embedder, job.progress, with_scores=entry.reads_scores)
                job.begin("fitting")
                await follower.fit(entry, data, version, embedder, job.progress, afresh=afresh)
            job.end("succeeded")
        except (JobCancelled, Superseded):
            entry.attempt = Cancelled()
            job.end("cancelled")
        except asyncio.CancelledError:
            job.end("cancelled", "the gateway is stopping")
            raise
        except Exception as error:
            follower.note_failure(entry, error, version)
            job.end("failed", entry.error)
        finally:
            follower.num_jobs[entry.spec.name] -= 1
        self._announce()

    def _announce(self) -> dict[str, LivePolicy]:
        self._follower.show_lag()
        live = self._book.live
        self.on_change(live)
        return live
