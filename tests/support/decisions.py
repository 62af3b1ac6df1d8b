"""Builds decisions as the log keeps them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from adapters_registry.decisions import DecisionRecord

NOON = datetime(2026, 2, 28, 12, 0, 30, 1234, tzinfo=UTC)


def decision(request_id: str = "r", **changes: object) -> DecisionRecord:
    """A decision of the policy auto for the expert sql, but for what is changed."""
    plain = DecisionRecord(
        request_id=request_id,
        at=NOON,
        key_id="aaaaaaaa",
        endpoint="/v1/chat/completions",
        kind="policy",
        policy="auto",
        recipe="sql@00000001",
        experts=("sql@00000001",),
        confidence=0.75,
        abstained=False,
        status=200,
        input_tokens=2**40,
        output_tokens=7,
        duration_ms=12.5,
        ttft_ms=None,
        cost=0.25,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]
