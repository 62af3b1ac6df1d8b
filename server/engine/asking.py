"""Questions of our own to the engine: what probes, fits and routing ask, apart from what callers send.

One JSON object goes out, one comes back. They share the pool with callers' requests; whoever asks many at once bounds
them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from server.engine.base import EngineRequest
from server.engine.body import JsonBody
from server.engine.errors import EngineBroke, EngineRefused
from server.engine.pool import EnginePool
from server.engine.recipes import Recipe

MAX_MESSAGE_CHARS = 500


async def ask(
    pool: EnginePool, path: str, fields: Mapping[str, Any], recipe: Recipe, request_id: str
) -> dict[str, Any]:
    """The engine's answer to a body of these fields.

    Raises:
        GatewayError: As `EnginePool.forward` does.
        EngineRefused: The engine answered that something is wrong.
        EngineFault: The answer broke off, or is no JSON object.
    """
    asked = dict(fields)
    response = await pool.forward(EngineRequest(path, JsonBody(orjson.dumps(asked), asked), recipe, request_id))
    try:
        raw = await response.inner.read()
    finally:
        response.close()
    status = response.inner.status
    try:
        answer = orjson.loads(raw)
    except orjson.JSONDecodeError:
        answer = None
    if not isinstance(answer, dict):  # a proxy in between, say: this is not the engine's word
        raise EngineBroke(f"The engine's answer to {path} is no JSON object (status {status}).")
    if status >= 400:
        raise EngineRefused(status, str(answer.get("error", answer))[:MAX_MESSAGE_CHARS])
    return answer
