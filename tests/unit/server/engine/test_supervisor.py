"""The supervisor, with the double of the engine as its child."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import structlog
import structlog.testing

from server.engine.errors import EngineMissing
from server.engine.supervisor import EngineCommand, EngineOptions, EngineSupervisor, engine_command
from server.telemetry.metrics import Metrics
from tests.support.processes import alive, descendants
from tests.support.waiting import eventually, eventually_sync


def command(*argv: str) -> EngineCommand:
    return EngineCommand(argv, {}, "http://127.0.0.1:1", "key")


SLEEPER = (
    sys.executable,
    "-c",
    "import subprocess,sys; subprocess.run([sys.executable,'-c','import time;time.sleep(600)'])",
)


async def test_a_child_that_dies_is_started_again() -> None:
    metrics = Metrics(max_experts=1, prices={})
    supervisor = EngineSupervisor(command(*SLEEPER), metrics)
    supervisor.start()
    await eventually(lambda: supervisor.pid)
    first = supervisor.pid
    assert first
    os.kill(first, signal.SIGKILL)
    await eventually(lambda: supervisor.pid and supervisor.pid != first)
    assert metrics.registry.get_sample_value("moergate_engine_restarts_total") == 1
    await supervisor.stop()


async def test_stopping_ends_every_process_of_the_child() -> None:
    supervisor = EngineSupervisor(command(*SLEEPER), Metrics(max_experts=1, prices={}))
    supervisor.start()
    await eventually(lambda: supervisor.pid and len(descendants(supervisor.pid)) >= 1)
    assert supervisor.pid
    family = descendants(supervisor.pid) | {supervisor.pid}
    await supervisor.stop()
    await eventually(lambda: not any(alive(pid) for pid in family))


async def test_only_warnings_that_a_user_can_act_on_are_shown() -> None:
    warning = "(APIServer pid=1) WARNING 12-01 04:56:32 [a.py:1] "
    tokenizers, cache, failure = (
        warning + "vLLM has deprecated support for supporting different tokenizers for different LoRAs. By default",
        warning + "the cache is full",
        "(EngineCore pid=2) ERROR 12-01 04:56:32 [b.py:2] no memory",
    )
    talker = (
        "import itertools, time\nfor _ in itertools.count():\n"
        f"    print({tokenizers!r}, {failure!r}, {cache!r}, sep='\\n', flush=True); time.sleep(0.02)"
    )
    supervisor = EngineSupervisor(command(sys.executable, "-c", talker), Metrics(max_experts=1, prices={}))
    with structlog.testing.capture_logs() as entries:

        def levels(line: str) -> set[str]:
            return {entry["log_level"] for entry in entries if entry["event"] == line}

        supervisor.start()
        await eventually(lambda: levels(cache))
        assert (levels(cache), levels(tokenizers), levels(failure)) == ({"debug"}, {"debug"}, {"error"})
        supervisor.note_ready()
        await eventually(lambda: "warning" in levels(cache))
        entries.clear()
        await eventually(lambda: levels(cache) and levels(tokenizers) and levels(failure))
        await supervisor.stop()
        assert (levels(cache), levels(tokenizers), levels(failure)) == ({"warning"}, {"debug"}, {"error"})


def test_the_child_ends_when_the_gateway_is_killed() -> None:
    script = (
        "import asyncio, sys\n"
        "from server.engine.supervisor import EngineCommand, EngineSupervisor\n"
        "from server.telemetry.metrics import Metrics\n"
        "async def main():\n"
        "    c = EngineCommand((sys.executable, '-c', 'import time; time.sleep(600)'), {}, '', '')\n"
        "    s = EngineSupervisor(c, Metrics(max_experts=1, prices={}))\n"
        "    s.start()\n"
        "    while not s.pid: await asyncio.sleep(0.01)\n"
        "    await asyncio.sleep(1)\n"
        "    print(s.pid, flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        child = next(int(line) for line in parent.stdout if line.strip().isdigit())
        assert alive(child)
        parent.kill()
    eventually_sync(lambda: not alive(child))


def test_a_missing_system_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    monkeypatch.setattr("server.engine.supervisor._loads", lambda _library: False)
    with pytest.raises(EngineMissing, match="libnuma1"):
        engine_command(EngineOptions("model", tmp_path, "auto", 4, 8, 16, 512, 1.0))


def test_the_command_keeps_to_loopback_with_a_key_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    options = EngineOptions("model", tmp_path, "auto", 4, 8, 16, 512, 1.0, ("--seed", "7"))
    first, second = engine_command(options), engine_command(options)
    assert first.argv[first.argv.index("--host") + 1] == "127.0.0.1"
    assert first.argv[-2:] == ("--seed", "7")
    assert first.key != second.key
    assert first.key not in " ".join(first.argv)
    assert first.env["MOERGATE_ADAPTERS_DIR"] == str(tmp_path)
