"""``moergate fake-engine``: a test double of an engine, for load tests and for trying the gateway without a model."""

from __future__ import annotations

from typing import Annotated

import typer

HELP = "Run a test double of an engine: it speaks vLLM's HTTP API, generates filler, and takes the given time."


def fake_engine(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 8100,
    ttft_ms: Annotated[float, typer.Option(min=0, help="Time to the first token, in milliseconds.")] = 0.0,
    tokens_per_s: Annotated[
        float, typer.Option(min=0, help="Tokens per second after the first; 0 is as fast as possible.")
    ] = 0.0,
    num_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer without max_tokens.")] = 16,
    slots: Annotated[int, typer.Option(min=1, help="Number of experts reported as resident at once.")] = 1024,
) -> None:
    """Run the test double; HELP is the help text."""
    import uvicorn

    from server.engine.fake import FakeEngine

    app = FakeEngine(ttft_s=ttft_ms / 1000, tokens_per_s=tokens_per_s, num_tokens=num_tokens, num_slots=slots)
    uvicorn.run(app, host="127.0.0.1", port=port, access_log=False, log_level="warning", lifespan="off")
