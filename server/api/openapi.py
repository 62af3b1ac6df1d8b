"""The OpenAPI document: what FastAPI finds by itself, and what it cannot know.

Bodies are read under limits of our own and checked after authentication, and the inference endpoints are no routes of
FastAPI's; so their schemas are added here, from the models that check them.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from adapters_registry.records import Manifest
from server.api.admin import ComposeOrder, ExamplesOrder
from server.api.example_map import PlaceOrder
from server.api.lifecycle import ChangeOrder, PromoteOrder
from server.api.policies import PolicyRequest
from server.endpoints import ENDPOINTS
from server.insights.leaderboard import Leaderboard
from server.journal.feedback import FeedbackOrder
from server.planning.routing_fields import MAX_TASK_ID_CHARS
from server.policies.scores import ScoreReport

BODIES: dict[tuple[str, str], type[BaseModel]] = {
    ("post", "/admin/adapters"): Manifest,
    ("post", "/admin/adapters/compose"): ComposeOrder,
    ("put", "/admin/adapters/{ref}/examples"): ExamplesOrder,
    ("post", "/admin/adapters/{ref}/promote"): PromoteOrder,
    ("post", "/admin/adapters/{ref}/withdraw"): ChangeOrder,
    ("post", "/admin/adapters/{name}/rollback"): ChangeOrder,
    ("post", "/admin/policies"): PolicyRequest,
    ("post", "/admin/scores"): ScoreReport,
    ("post", "/v1/feedback"): FeedbackOrder,
    ("post", "/admin/map/place"): PlaceOrder,
    ("put", "/admin/leaderboard"): Leaderboard,
}
OPEN = ("/livez", "/health", "/readyz")
"""Paths that need no key."""

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
                "problems": {"type": "array", "items": {"type": "object"}},
            },
        }
    },
}
_CALL = {
    "type": "object",
    "description": "The body of OpenAI's, Anthropic's or vLLM's API; passed on as it is but for 'model'.",
    "properties": {
        "model": {"type": "string", "description": "The base, an expert, a recipe or a policy (policy:threshold)."},
        "task_id": {
            "type": "string",
            "description": "For policies that decide for a task.",
            "maxLength": MAX_TASK_ID_CHARS,
        },
        "preference": {"type": "object", "additionalProperties": {"type": "number", "minimum": 0}},
        "exclude_experts": {"type": "array", "items": {"type": "string"}},
    },
}
_FAILURES = {
    "4XX": {"description": "The request is wrong, not allowed, or too much; the message says what to do."},
    "5XX": {"description": "The gateway or the engine cannot answer now."},
}


def document(app: FastAPI) -> None:
    """Complete the document of an application."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _completed(generate())
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _completed(found: dict[str, Any]) -> dict[str, Any]:
    components = found.setdefault("components", {})
    _, bodies = models_json_schema(
        [(body, "validation") for body in BODIES.values()], ref_template="#/components/schemas/{model}"
    )
    components["schemas"] = {"Error": _ERROR, "Call": _CALL, **bodies["$defs"]}
    components["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    }
    for path in ENDPOINTS:
        found["paths"].setdefault(path, {})["post"] = {
            "tags": ["inference"],
            "summary": f"As vLLM's {path}; 'model' may be the base, an expert, a recipe or a policy",
            "requestBody": _body("Call"),
            "responses": {"200": {"description": "The engine's answer, or its stream of server-sent events"}},
        }
    found["paths"]["/v1/route"]["post"]["requestBody"] = _body("Call")
    for (method, path), model in BODIES.items():
        found["paths"][path][method]["requestBody"] = _body(model.__name__)
    upload = {
        "type": "object",
        "required": ["manifest", "files"],
        "properties": {
            "manifest": {"type": "string", "description": "The manifest as JSON."},
            "files": {"type": "array", "items": {"type": "string", "format": "binary"}},
        },
    }
    content = found["paths"]["/admin/adapters"]["post"]["requestBody"]["content"]
    content["multipart/form-data"] = {"schema": upload}
    for path, operations in found["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            for status, failure in _FAILURES.items():
                schema = {"schema": {"$ref": "#/components/schemas/Error"}}
                operation["responses"][status] = failure | {"content": {"application/json": schema}}
            operation["security"] = [] if path in OPEN else [{"bearer": []}, {"x-api-key": []}]
    return found


def _body(name: str) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{name}"}
    return {"content": {"application/json": {"schema": schema}}, "required": True}
