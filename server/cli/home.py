"""Opens the library of a home folder, for commands that need no running gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from server.settings import Settings

if TYPE_CHECKING:
    from adapters_registry.library import Library

Result = TypeVar("Result")
Home = Annotated[Path | None, typer.Option(help="The gateway's home folder.")]


def with_library(settings: Settings, work: Callable[[Library], Awaitable[Result]]) -> Result:
    """Open the library of these settings and run `work` on it; raises RegistryError."""
    from server.wiring import open_library  # imported on use: most commands do not need it

    async def run() -> Result:
        library = await open_library(settings)
        try:
            return await work(library)
        finally:
            await library.close()

    return asyncio.run(run())
