"""A lock between processes on one machine: many concurrent registrations, or one removal.

It is an flock, which the kernel releases when its holder dies. It is polled without blocking, because a thread that
waits inside flock cannot be cancelled.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from adapters_registry.disk.safe_files import storage_errors

_RETRY_S = 0.02


@asynccontextmanager
async def file_lock(path: Path, *, exclusive: bool) -> AsyncIterator[None]:
    """Hold the lock on `path`, shared or exclusive. Waits without limit; cancelling is safe."""
    with storage_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    try:
        while not _try_lock(descriptor, kind):  # noqa: ASYNC110 - another process cannot set our event
            await asyncio.sleep(_RETRY_S)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
