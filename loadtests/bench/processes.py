"""Starts the processes that are measured, waits until they answer, and ends each by its id."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType

STOP_GRACE_S = 10.0
_LOG_TAIL_LINES = 15


class NotReady(Exception):
    """A process did not come up; the text holds the end of its log."""


def free_port() -> int:
    """A port on loopback that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def moergate_command() -> list[str]:
    """The command ``moergate`` of the environment that runs this script."""
    script = Path(sys.executable).with_name("moergate")
    return [str(script)] if script.exists() else [sys.executable, "-c", "from server.cli import main; main()"]


class Child:
    """A process with a port on loopback.

    Args:
        name: For messages, and of its log file.
        command: What to run.
        port: Where it will listen.
        folder: Where its log goes.
        cores: The only processors that it may use; None stands for all of ours.
        env: Variables on top of ours.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        port: int,
        folder: Path,
        cores: frozenset[int] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.port = port
        self._log = folder / f"{name}.log"
        # Settings of the person who runs this must not leak into what is measured.
        environment = {key: value for key, value in os.environ.items() if not key.startswith("MOERGATE_")}
        environment |= env or {}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                preexec_fn=partial(os.sched_setaffinity, 0, cores) if cores else None,
            )

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def wait_ready(self, path: str, timeout_s: float) -> None:
        """Wait until ``GET path`` answers 200.

        Raises:
            NotReady: It ended, or did not answer in time.
        """
        end = time.monotonic() + timeout_s
        last = "nothing listens"
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise NotReady(f"{self.name} ended with status {self._process.returncode}.{self._tail()}")
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            try:
                connection.request("GET", path)
                answer = connection.getresponse()
                last = answer.read().decode("utf-8", "replace")
                if answer.status == 200:
                    return
            except (OSError, http.client.HTTPException):
                pass
            finally:
                connection.close()
            time.sleep(0.1)
        raise NotReady(f"{self.name} is not ready after {timeout_s:g} s: {last[:500]}{self._tail()}")

    def stop(self) -> None:
        """End it: politely, then not."""
        if self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def kill(self) -> None:
        """End it as a crash would: no signal handler runs."""
        self._process.kill()
        self._process.wait()

    def _tail(self) -> str:
        lines = self._log.read_text("utf-8", "replace").splitlines()[-_LOG_TAIL_LINES:]
        return "\n  ".join(["", *lines])


class Children:
    """All processes of a run; leaving the block ends them, the newest first."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: list[Child] = []

    def start(
        self,
        name: str,
        command: Sequence[str],
        port: int,
        ready: str,
        timeout_s: float = 60.0,
        cores: frozenset[int] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Child:
        """Start a process and wait until it is ready; one that does not get ready is ended.

        Raises:
            NotReady: With the end of its log.
        """
        child = Child(name, command, port, self._folder, cores, env)
        self._running.append(child)
        try:
            child.wait_ready(ready, timeout_s)
        except NotReady:
            child.stop()
            raise
        return child

    def __enter__(self) -> Children:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for child in reversed(self._running):
            child.stop()
