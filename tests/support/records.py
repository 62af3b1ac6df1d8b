"""Records of experts, for tests that need no files."""

from __future__ import annotations

from adapters_registry.records import AdapterRecord, Card, utc_now
from adapters_registry.states import AdapterState


def record(name: str, *examples: str, content: int = 0) -> AdapterRecord:
    """An active expert with these example prompts; `content` stands for its files."""
    sha256 = f"{content:08x}" + "0" * 56
    now = utc_now()
    return AdapterRecord(
        name=name,
        version=sha256[:8],
        sha256=sha256,
        state=AdapterState.ACTIVE,
        card=Card(),
        examples=examples,
        rank=4,
        alpha=8,
        target_modules=("q_proj",),
        size_bytes=1,
        base_model="tiny",
        created_at=now,
        updated_at=now,
    )
