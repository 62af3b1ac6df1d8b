"""From a policy's definition and data to a policy that can decide: fit, publish the artefact, open it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import structlog

from routers.artefacts import ArtefactStore, code_version
from routers.base import Artefact, FitData, Losses, Progress, Router
from routers.embedders.base import Embedder
from routers.errors import BadArtefact, NotFittable
from routers.fitting import fit_policy
from routers.library.subset import restrict, select
from server.policies.book import Entry
from server.policies.fit_data import Experts, blocking
from server.policies.live import LivePolicy, is_slow
from server.policies.method_cards import with_command
from server.telemetry.drift import fitting_profile

log = structlog.get_logger(__name__)


class Superseded(Exception):
    """The policy was removed or redefined while it was being fitted; the result is discarded."""


class Fitter:
    """Fits policies and opens their artefacts. Holds no locks and no state of its own.

    Args:
        artefacts: The store of fitted artefacts.
        losses: Returns the engine, for methods that search for weights; None if there is none now.
    """

    def __init__(self, artefacts: ArtefactStore, losses: Callable[[], Losses | None] = lambda: None) -> None:
        self._artefacts = artefacts
        self._losses = losses

    @property
    def losses(self) -> Losses | None:
        """The engine, for methods that search for weights."""
        return self._losses()

    async def fit(
        self,
        entry: Entry,
        data: FitData,
        version: str,
        embedder: Embedder,
        progress: Progress,
        *,
        previous: Router | None = None,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> LivePolicy:
        """Fit a policy in a worker thread, publish its artefact and open it.

        Args:
            data: The library, embedded.
            version: Version of that data with the policy's samples.
            previous: The router that served before, for methods that update one.
            progress: Called as the fit advances; an exception that it raises ends the fit.
            is_wanted: Checked before publishing: the policy may have been removed or redefined in the meantime.

        Raises:
            Superseded: The policy is no longer wanted.
            RouterError, OSError: The fit failed.
        """
        loop = asyncio.get_running_loop()

        def work() -> Artefact:
            mine = replace(
                data,
                version=version,
                samples=entry.spec.samples,
                losses=self._losses(),
                embed=blocking(embedder, loop),
                previous=previous,
            )
            considered = [expert.expert_id for expert in mine.experts]
            extra = {"config": entry.artefact_config, "library": considered}
            if entry.spec.settings.subset is not None:
                mine = restrict(mine, select(entry.spec.settings.subset, mine))
                extra |= {"library": [expert.expert_id for expert in mine.experts], "considered": considered}
            fitted = fit_policy(entry.spec.settings.router, entry.config, mine, progress)
            made = {"code_version": code_version(), "fitted_at": datetime.now(UTC).isoformat(timespec="seconds")}
            artefact = replace(fitted, data={**fitted.data, **extra, "provenance": made})
            if not is_wanted():
                raise Superseded
            self._artefacts.publish(entry.spec.name, artefact)
            return artefact

        try:
            artefact = await asyncio.to_thread(work)
        except NotFittable as error:
            raise NotFittable(with_command(str(error), error.need), error.need) from error
        return await self._open(entry, artefact, embedder, data.experts)

    async def reopen(self, entry: Entry, embedder: Embedder, experts: Experts) -> LivePolicy | None:
        """Open the stored artefact if it has the same router, options and embedder, and can be read."""
        name = entry.spec.name
        try:
            artefact = await asyncio.to_thread(self._artefacts.current, name)
            if artefact is None or artefact.router != entry.spec.settings.router:
                return None
            if artefact.data.get("config") != entry.artefact_config or artefact.embedder != embedder.name:
                return None
            return await self._open(entry, artefact, embedder, experts)
        except BadArtefact as error:
            log.warning("stored policy cannot be used; it is fitted again", policy=name, error=str(error))
            return None

    async def fitted_elsewhere(
        self, entry: Entry, version: str, embedder: Embedder, experts: Experts
    ) -> LivePolicy | None:
        """Open the artefact that another gateway on this home fitted to this version of the data, if there is one."""
        if not await asyncio.to_thread(self._artefacts.may_be_of, entry.spec.name, version):
            return None
        found = await self.reopen(entry, embedder, experts)
        return found if found is not None and found.version == version else None

    async def _open(self, entry: Entry, artefact: Artefact, embedder: Embedder, experts: Experts) -> LivePolicy:
        router = await asyncio.to_thread(entry.kind.load, entry.config, artefact)
        slow = await asyncio.to_thread(is_slow, router, embedder.dim)
        library = artefact.data.get("library")
        considered = artefact.data.get("considered", library)
        if not isinstance(library, list) or not isinstance(considered, list):
            raise BadArtefact("the artefact does not say which experts it was fitted to")
        ids = frozenset(map(str, library))
        mine = [expert for expert in experts if expert.expert_id in ids]
        return LivePolicy(
            entry.spec.name,
            entry.spec.settings.router,
            router,
            artefact.library_version,
            embedder,
            ids,
            frozenset(map(str, considered)),
            slow,
            provenance=artefact.data.get("provenance", {}),
            spec=entry.spec,
            fitting=fitting_profile(mine, artefact.data) if "examples" in entry.kind.card.needs else None,
            audience=entry.spec.settings.audience,
        )
