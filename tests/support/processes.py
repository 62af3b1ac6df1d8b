"""Starting the command as a user would, and being sure that it ends."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.waiting import eventually_sync


@dataclass
class Serving:
    """A ``moergate serve`` process."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def get(self, path: str) -> tuple[int, Any]:
        """Status and parsed body of a GET; status 0 if nobody answers."""
        return fetch(self.url + path)

    def wait_ready(self, timeout_s: float = 300.0) -> float:
        """Wait until ``/readyz`` says so; returns the seconds it took."""
        started = time.monotonic()
        eventually_sync(lambda: self._answers("/readyz"), timeout_s, lambda: self.log.read_text()[-4000:])
        return time.monotonic() - started

    def wait_alive(self) -> None:
        """Wait until ``/livez`` answers."""
        eventually_sync(lambda: self._answers("/livez"), message=lambda: self.log.read_text()[-4000:])

    def _answers(self, path: str) -> bool:
        code = self.process.poll()
        assert code is None, f"serve ended with {code}:\n{self.log.read_text()[-4000:]}"
        return self.get(path)[0] == 200


def fetch(url: str, body: Any = None, headers: Mapping[str, str] | None = None) -> tuple[int, Any]:
    """Status and parsed body of a GET, or of a POST of JSON; status 0 if nobody answers."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json", **(headers or {})})
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)
    except OSError:
        return 0, None


def free_port() -> int:
    """A port on loopback that nothing uses now, below those that the system gives to outgoing connections.

    One of theirs could be taken by a connection before the server under test listens on it.
    """
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("none of a hundred ports is free")


@contextlib.contextmanager
def serving(
    home: Path, port: int, *arguments: str, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Iterator[Serving]:
    """Run ``moergate serve`` as a process of its own; it is ended, and if need be killed, at the end."""
    log = home.parent / f"{home.name}.log"
    command = [sys.executable, "-m", "server.cli", "serve", "--home", str(home), "--port", str(port), *arguments]
    with log.open("ab") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **(env or {})}, cwd=cwd)
    try:
        yield Serving(process, f"http://127.0.0.1:{port}", log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()


def run_cli(*arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a ``moergate`` command to its end."""
    command: Sequence[str] = [sys.executable, "-m", "server.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, **(env or {})})


def descendants(pid: int) -> set[int]:
    """Process ids below a process, by ``/proc``."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found: set[int] = set()
    grown = {pid}
    while grown:
        grown = {child for child, parent in parents.items() if parent in grown} - found
        found |= grown
    return found


def alive(pid: int) -> bool:
    """Whether a process still runs (a zombie does not)."""
    try:
        state = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
