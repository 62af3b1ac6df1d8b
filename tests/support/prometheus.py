"""A real Prometheus for tests, and a double of an engine's metrics that it can read."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from starlette.types import Receive, Scope, Send

from tests.support.observed import PROMETHEUS
from tests.support.processes import free_port
from tests.support.waiting import eventually_sync

SKIPPED = "there is no prometheus on PATH nor below the environment (tests/tools/get_prometheus.sh says why)"
_COUNTER = re.compile(r"(_total|_bucket|_sum|_count)(\{.*\})? ([0-9.e+-]+)$")


def find_program(name: str) -> str | None:
    """Path of ``prometheus`` or ``promtool``: on PATH, else where `tests/tools/get_prometheus.sh` puts it."""
    own = Path(sys.prefix) / "opt" / "prometheus" / "usr" / "bin" / name
    return shutil.which(name) or (str(own) if own.exists() else None)


@dataclass
class Prometheus:
    """A running server, asked over its HTTP API.

    Attributes:
        at: The time that queries refer to, in seconds since 1970; None is now.
    """

    url: str
    at: float | None = None

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The series that an expression gives; fails if it cannot be understood."""
        moment = {} if self.at is None else {"time": str(self.at)}
        found: list[dict[str, Any]] = self.get("query", query=expr, **moment)["result"]
        return found

    def values(self, expr: str) -> list[float]:
        """The values of the series that an expression gives, without those that are no number."""
        values = [float(series["value"][1]) for series in self.query(expr)]
        return [value for value in values if value == value]

    def get(self, path: str, **parameters: str) -> Any:
        """What the API answers."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{json.load(error)['error']}: {parameters}") from None


def config_for(folder: Path, targets: dict[str, str], key: str) -> Path:
    """Write our own configuration and rules with other targets (by job), a key, and everything done each second."""
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text("utf-8"))
    (folder / "rules").mkdir()
    for path in (PROMETHEUS / "rules").glob("*.yml"):
        groups = yaml.safe_load(path.read_text("utf-8"))["groups"]
        hasty = {"groups": [group | {"interval": "1s"} for group in groups]}
        (folder / "rules" / path.name).write_text(yaml.safe_dump(hasty))
    (folder / "key").write_text(key)
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    for job in config["scrape_configs"]:
        job["static_configs"] = [{"targets": [targets[job["job_name"]]]}]
        if "authorization" in job:
            job["authorization"]["credentials_file"] = str(folder / "key")
    written = folder / "prometheus.yml"
    written.write_text(yaml.safe_dump(config))
    return written


@contextlib.contextmanager
def running_prometheus(program: str, config: Path) -> Iterator[Prometheus]:
    """Run a server with this configuration; its data lies beside it."""
    port = free_port()
    command = [program, f"--config.file={config}", f"--storage.tsdb.path={config.parent / 'data'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
    log = config.parent / "prometheus.log"
    with log.open("wb") as out:
        environment = {**os.environ, "GOMAXPROCS": "1"}
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
    server = Prometheus(f"http://127.0.0.1:{port}")
    try:

        def is_ready() -> bool:
            assert process.poll() is None, log.read_text()
            return _answers(f"{server.url}/-/ready")

        eventually_sync(is_ready, 60, log.read_text)
        yield server
    finally:
        process.terminate()
        process.wait(30)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except OSError:
        return False


class GrowingMetrics:
    """Serves a scrape that was recorded once; its counters grow by a tenth with every further scrape."""

    def __init__(self, text: str) -> None:
        self._lines = text.splitlines()
        self._num_scrapes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._num_scrapes += 1
        factor = 1 + self._num_scrapes / 10

        def grow(match: re.Match[str]) -> str:
            return f"{match[1]}{match[2] or ''} {float(match[3]) * factor}"

        body = "\n".join(_COUNTER.sub(grow, line) for line in self._lines) + "\n"
        headers = [(b"content-type", b"text/plain; version=0.0.4")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body.encode()})
