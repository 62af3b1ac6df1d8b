"""The OpenAPI document: what FastAPI generates, completed with what it cannot know.

Routes read their bodies through `BodyOf`, and the inference endpoints are no routes of FastAPI's, so their schemas are
added here. Security comes from the routes' guards.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from adapters_registry.records import Manifest
from server.api.guard import BodyOf
from server.endpoints import ENDPOINTS
from server.planning.routing_fields import MAX_TASK_ID_CHARS

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
    "description": "The body of OpenAI's, Anthropic's or vLLM's API; forwarded unchanged except for 'model'.",
    "properties": {
        "model": {"type": "string", "description": "The base, an expert, a recipe or a policy (policy:threshold)."},
        "task_id": {
            "type": "string",
            "description": "For policies that decide once for a task.",
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
_SECURITY: list[dict[str, list[str]]] = [{"bearer": []}, {"x-api-key": []}]


def document(app: FastAPI) -> None:
    """Complete the document of an application."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _completed(generate(), dict(_bodies(app)))
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _bodies(app: FastAPI) -> Iterator[tuple[tuple[str, str], BodyOf]]:
    """Method, path and body of each route that reads its body through `BodyOf`."""
    for route in app.routes:
        if isinstance(route, APIRoute):
            for dependency in route.dependant.dependencies:
                if isinstance(dependency.call, BodyOf):
                    yield from (((method.lower(), route.path), dependency.call) for method in route.methods)


def _completed(found: dict[str, Any], bodies: dict[tuple[str, str], BodyOf]) -> dict[str, Any]:
    models: list[type[BaseModel]] = [Manifest, *(body.model for body in bodies.values())]
    _, schemas = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
    )
    found["components"]["schemas"] = {"Error": _ERROR, "Call": _CALL, **schemas["$defs"]}
    paths = found["paths"]
    for path in ENDPOINTS:
        paths.setdefault(path, {})["post"] = {
            "tags": ["inference"],
            "summary": f"Like vLLM's {path}; 'model' may be the base, an expert, a recipe or a policy",
            "requestBody": _content("Call"),
            "responses": {"200": {"description": "The engine's answer, or its stream of server-sent events"}},
            "security": _SECURITY,
        }
    paths["/v1/route"]["post"]["requestBody"] = _content("Call")
    paths["/admin/adapters"]["post"]["requestBody"]["content"] |= _content("Manifest")["content"]
    for (method, path), body in bodies.items():
        paths[path][method]["requestBody"] = _content(body.model.__name__, required=not body.optional)
    for operations in paths.values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            for status, failure in _FAILURES.items():
                schema = {"schema": {"$ref": "#/components/schemas/Error"}}
                operation["responses"][status] = failure | {"content": {"application/json": schema}}
    return found


def _content(name: str, *, required: bool = True) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{name}"}
    return {"content": {"application/json": {"schema": schema}}, "required": required}
