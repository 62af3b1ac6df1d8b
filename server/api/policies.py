"""The admin API of policies: define, fit, watch and remove them, and the table of scores that some learn from."""

from __future__ import annotations

import asyncio
import re
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adapters_registry.records import MAX_CARD_ITEMS, Tag, Tenant
from routers.base import Sample
from routers.evaluation.answer_metrics import metric_names
from server.access.auth import Authenticator, Principal
from server.api.incoming import read_body, told, validated
from server.errors import BadRequest, Conflict
from server.experts.watcher import LibraryWatcher
from server.policies.definitions import PolicySpec
from server.policies.manager import PolicyManager
from server.policies.method_cards import describe_methods
from server.policies.scores import ScoreStore, parse_report
from server.settings import PolicySettings, Settings

_POLICY_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
MAX_SAMPLES = 20_000


class SampleIn(BaseModel):
    """A prompt with the wanted answer."""

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
    router = APIRouter(prefix="/admin", tags=["policies"])

    async def principal_of(request: Request) -> Principal:
        return await authenticator.authorise(request.headers, "admin")

    @router.get("/routers", summary="List the routing methods with their cards and options")
    async def list_routers(request: Request) -> dict[str, Any]:
        await principal_of(request)
        return {"object": "list", "data": await asyncio.to_thread(describe_methods)}

    @router.get("/policies", summary="List the policies with their state")
    async def list_policies(request: Request) -> dict[str, Any]:
        await principal_of(request)
        return {"object": "list", "data": policies.describe()}

    @router.get("/policies/{name}", summary="Show a policy")
    async def show_policy(name: str, request: Request) -> dict[str, Any]:
        await principal_of(request)
        return policies.describe_one(name)

    @router.post("/policies", status_code=202, summary="Define or redefine a policy and fit it in the background")
    async def create_policy(request: Request) -> dict[str, Any]:
        await principal_of(request)
        raw = await read_body(request.headers, request.receive, settings.max_upload_bytes)
        wanted = _parse(raw)
        if any(record.name == wanted.name for record in watcher.records):
            raise Conflict(f"{wanted.name!r} is the name of an expert; choose another name.", param="name")
        return (await policies.create(_spec(wanted))).show()

    @router.post("/policies/{name}/fit", status_code=202, summary="Fit a policy again in the background")
    async def refit_policy(name: str, request: Request) -> dict[str, Any]:
        await principal_of(request)
        return policies.refit(name).show()

    @router.delete("/policies/{name}", summary="Remove a policy with its artefacts")
    async def remove_policy(name: str, request: Request) -> dict[str, Any]:
        await principal_of(request)
        await policies.remove(name)
        return {"name": name, "removed": True}

    @router.get("/jobs", summary="List the last jobs")
    async def list_jobs(request: Request) -> dict[str, Any]:
        await principal_of(request)
        return {"object": "list", "data": [job.show() for job in policies.jobs.all()]}

    @router.get("/jobs/{job_id}", summary="Show how far a job is")
    async def show_job(job_id: str, request: Request) -> dict[str, Any]:
        await principal_of(request)
        return policies.jobs.get(job_id).show()

    @router.delete("/jobs/{job_id}", summary="Ask a job to end at its next step")
    async def cancel_job(job_id: str, request: Request) -> dict[str, Any]:
        await principal_of(request)
        job = policies.jobs.get(job_id)
        job.cancel()
        return job.show()

    @router.get("/scores", summary="What the table of scores holds")
    async def show_scores(request: Request) -> dict[str, Any]:
        await principal_of(request)
        return await asyncio.to_thread(scores.summary)

    @router.post("/scores", summary="Report scores of models on prompts; newer figures win")
    async def report_scores(request: Request) -> dict[str, Any]:
        await principal_of(request)
        raw = await read_body(request.headers, request.receive, settings.max_upload_bytes)
        rows = await asyncio.to_thread(parse_report, raw)
        await asyncio.to_thread(scores.report, rows)
        return await asyncio.to_thread(scores.summary)

    @router.delete("/scores", summary="Forget all scores")
    async def clear_scores(request: Request) -> dict[str, Any]:
        await principal_of(request)
        await asyncio.to_thread(scores.clear)
        return await asyncio.to_thread(scores.summary)

    return router


def _parse(raw: bytes) -> PolicyRequest:
    wanted = validated(PolicyRequest, raw)
    if not _POLICY_NAME.fullmatch(wanted.name) or wanted.name == "base":
        raise BadRequest(
            "A policy's name has 1 to 63 of a-z, 0-9, '_', '.' and '-', beginning with a letter or digit, and is not "
            "'base'.",
            param="name",
        )
    for number, sample in enumerate(wanted.samples):
        if not sample.prompt.strip():
            raise BadRequest("A sample's prompt is empty.", param=f"samples.{number}.prompt")
        if sample.metric not in metric_names():
            known = ", ".join(metric_names())
            raise BadRequest(
                f"There is no metric {sample.metric!r}; known are {known}.", param=f"samples.{number}.metric"
            )
    return wanted


def _spec(wanted: PolicyRequest) -> PolicySpec:
    try:
        settings = PolicySettings.model_validate(wanted.model_dump(exclude={"name", "samples"}))
    except ValidationError as error:
        raise BadRequest(told(error)) from None
    samples = tuple(Sample(each.prompt, each.answer, each.task, each.metric) for each in wanted.samples)
    return PolicySpec(wanted.name, settings, samples, "admin")
