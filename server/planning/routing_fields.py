"""Fields of a request for the router: ``task_id``, ``exclude_experts`` and ``preference``.

The engine ignores them. Each function raises `BadRequest` if its field is present but malformed.
"""

from __future__ import annotations

from server.engine.body import JsonBody
from server.engine.recipes import MAX_EXPERTS, MAX_WEIGHT
from server.errors import BadRequest

MAX_TASK_ID_CHARS = 200
MAX_EXCLUDED = 256


def task_id_of(body: JsonBody) -> str | None:
    """Return ``task_id``, the caller's name for the task that the prompt belongs to."""
    task_id = body.fields.get("task_id")
    if task_id is None or (isinstance(task_id, str) and 0 < len(task_id) <= MAX_TASK_ID_CHARS):
        return task_id
    raise BadRequest(f"'task_id' must be a string of 1 to {MAX_TASK_ID_CHARS} characters.", param="task_id")


def excluded_by(body: JsonBody) -> frozenset[str]:
    """Return ``exclude_experts``, the names or ids of experts that a policy must not use."""
    given = body.fields.get("exclude_experts")
    if given is None:
        return frozenset()
    if not isinstance(given, list) or len(given) > MAX_EXCLUDED or not all(isinstance(each, str) for each in given):
        raise BadRequest(
            f"'exclude_experts' must be an array of at most {MAX_EXCLUDED} names.", param="exclude_experts"
        )
    return frozenset(given)


def preference_of(body: JsonBody) -> dict[str, float] | None:
    """Return ``preference``: non-negative weights by expert name."""
    given = body.fields.get("preference")
    if given is None:
        return None
    if not isinstance(given, dict) or not 0 < len(given) <= MAX_EXPERTS:
        raise BadRequest(f"'preference' must be an object of 1 to {MAX_EXPERTS} experts.", param="preference")
    for expert, weight in given.items():
        good = isinstance(weight, (int, float)) and not isinstance(weight, bool) and 0 <= weight <= MAX_WEIGHT
        if not good:
            raise BadRequest(f"The weight of {expert[:100]!r} must be from 0 to {MAX_WEIGHT:g}.", param="preference")
    return {expert: float(weight) for expert, weight in given.items()}
