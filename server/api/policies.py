"""The admin API of policies: define, fit, watch and remove them, and the score table that some learn from."""

# No "from __future__ import annotations" here: `BodyOf` takes arguments of the function around a route.

import asyncio
import re
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adapters_registry.records import MAX_CARD_ITEMS, Tag, Tenant
from routers.base import Sample
from routers.evaluation.answer_metrics import metric_names
from server.access.auth import Authenticator
from server.api.guard import BodyOf, requires
from server.api.incoming import format_validation_error
from server.errors import BadRequest, Conflict
from server.experts.watcher import LibraryWatcher
from server.policies.definitions import PolicySpec
from server.policies.manager import PolicyManager
from server.policies.method_cards import describe_methods
from server.policies.scores import ScoreReport, ScoreRow, ScoreStore, parse_report
from server.settings import PolicySettings, Settings

_POLICY_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
MAX_SAMPLES = 20_000


class SampleIn(BaseModel):
    """A prompt with its expected answer."""

    model_config = ConfigDict(extra="ignore")

    prompt: Annotated[str, Field(min_length=1, max_length=400_000)]
    answer: Annotated[str, Field(max_length=100_000)]
    task: Annotated[str, Field(max_length=200)] = ""
    metric: Annotated[str, Field(max_length=100)] = "exact_match"


class PolicyRequest(BaseModel):
    """The body of ``POST /admin/policies``."""

    model_config = ConfigDict(extra="forbid")

    name: str
    router: str
    options: dict[str, Any] = {}
    embedder: str | None = None
    subset: dict[str, Any] | None = None
    tags: Annotated[list[Tag], Field(max_length=MAX_CARD_ITEMS)] = []
    tenant: Tenant = ""
    samples: Annotated[list[SampleIn], Field(max_length=MAX_SAMPLES)] = []


def policies_router(
    policies: PolicyManager,
    scores: ScoreStore,
    watcher: LibraryWatcher,
    authenticator: Authenticator,
    settings: Settings,
) -> APIRouter:
    """Routes under ``/admin`` for policies, jobs, routers and scores."""
    router = APIRouter(prefix="/admin", tags=["policies"], dependencies=[Depends(requires(authenticator, "admin"))])
    max_bytes, setting = settings.max_upload_bytes, "max_upload_bytes"

    @router.get("/routers", summary="List the routing methods with their cards and options")
    async def list_routers() -> dict[str, Any]:
        return {"object": "list", "data": await asyncio.to_thread(describe_methods)}

    @router.get("/policies", summary="List the policies with their state")
    async def list_policies() -> dict[str, Any]:
        return {"object": "list", "data": policies.describe()}

    @router.get("/policies/{name}", summary="Show a policy")
    async def show_policy(name: str) -> dict[str, Any]:
        return policies.describe_one(name)

    @router.post("/policies", status_code=202, summary="Define or redefine a policy, and fit it in the background")
    async def create_policy(
        body: Annotated[PolicyRequest, Depends(BodyOf(PolicyRequest, max_bytes, setting=setting))],
    ) -> dict[str, Any]:
        _check(body)
        if any(record.name == body.name for record in watcher.records):
            raise Conflict(f"{body.name!r} is the name of an expert; choose another name.", param="name")
        return (await policies.create(_spec(body))).show()

    @router.post("/policies/{name}/fit", status_code=202, summary="Fit a policy again in the background")
    async def refit_policy(name: str) -> dict[str, Any]:
        return policies.refit(name).show()

    @router.delete("/policies/{name}", summary="Remove a policy with its artefacts")
    async def remove_policy(name: str) -> dict[str, Any]:
        await policies.remove(name)
        return {"name": name, "removed": True}

    @router.get("/jobs", summary="List the latest jobs")
    async def list_jobs() -> dict[str, Any]:
        return {"object": "list", "data": [job.show() for job in policies.jobs.all()]}

    @router.get("/jobs/{job_id}", summary="Show the progress of a job")
    async def show_job(job_id: str) -> dict[str, Any]:
        return policies.jobs.get(job_id).show()

    @router.delete("/jobs/{job_id}", summary="Cancel a job at its next step")
    async def cancel_job(job_id: str) -> dict[str, Any]:
        job = policies.jobs.get(job_id)
        job.cancel()
        return job.show()

    @router.get("/scores", summary="Summarise the score table")
    async def show_scores() -> dict[str, Any]:
        return await asyncio.to_thread(scores.summary)

    @router.post("/scores", summary="Report scores of models on prompts; newer figures replace older ones")
    async def report_scores(
        rows: Annotated[list[ScoreRow], Depends(BodyOf(ScoreReport, max_bytes, setting=setting, parse=parse_report))],
    ) -> dict[str, Any]:
        await asyncio.to_thread(scores.report, rows)
        return await asyncio.to_thread(scores.summary)

    @router.delete("/scores", summary="Delete all scores")
    async def clear_scores() -> dict[str, Any]:
        await asyncio.to_thread(scores.clear)
        return await asyncio.to_thread(scores.summary)

    return router


def _check(body: PolicyRequest) -> None:
    """Raise BadRequest for what the model cannot express."""
    if not _POLICY_NAME.fullmatch(body.name) or body.name == "base":
        raise BadRequest(
            "A policy's name has 1 to 63 of a-z, 0-9, '_', '.' and '-', begins with a letter or digit, and is not "
            "'base'.",
            param="name",
        )
    for number, sample in enumerate(body.samples):
        if not sample.prompt.strip():
            raise BadRequest("A sample's prompt is empty.", param=f"samples.{number}.prompt")
        if sample.metric not in metric_names():
            known = ", ".join(metric_names())
            raise BadRequest(
                f"There is no metric {sample.metric!r}; known are {known}.", param=f"samples.{number}.metric"
            )


def _spec(body: PolicyRequest) -> PolicySpec:
    try:
        settings = PolicySettings.model_validate(body.model_dump(exclude={"name", "samples"}))
    except ValidationError as error:
        raise BadRequest(format_validation_error(error)) from None
    samples = tuple(Sample(each.prompt, each.answer, each.task, each.metric) for each in body.samples)
    return PolicySpec(body.name, settings, samples, "admin")
