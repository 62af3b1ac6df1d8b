"""The load tests work: every scenario in a very short form, as a user would start it; a wrong expert fails them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from server.engine.fake import FakeEngine
from tests.support.servers import running_gateway

ROOT = Path(__file__).parents[2]
COMMON = ("--seconds", "0.6", "--rate", "40", "--experts", "4", "--callers", "4", "--no-pin")


def load_test(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "loadtests" / "load_test.py"), *arguments, *COMMON]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def checked(done: subprocess.CompletedProcess[str], out: Path, num_sections: int) -> str:
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    report = (out / "report.md").read_text("utf-8")
    assert report == done.stdout.removesuffix("\n") or report.strip() == done.stdout.strip()
    assert report.count("\n## ") == num_sections
    assert "FAILS" not in report
    assert "<svg" in (out / "report.html").read_text("utf-8")
    return report


async def test_scenarios_on_a_gateway_that_is_there(tmp_path: Path) -> None:
    async with running_gateway(tmp_path / "home") as running:
        given = (
            "grid", "recipes", "bursts", "changes", "bulk", "--url", running.url, "--out", str(tmp_path),
            "--bulk-experts", "20", "--grid-experts", "2", "--grid-skew", "1", "--grid-words", "24",
            "--grid-callers", "2",
        )  # fmt: skip
        report = checked(await asyncio.to_thread(load_test, *given), tmp_path, 5)
        assert not running.gateway.watcher.records, "what was registered is removed again"
    assert "auto" in report and "mix" in report


async def test_a_wrong_expert_is_seen_and_fails_the_run(tmp_path: Path) -> None:
    class Mixed(FakeEngine):
        """An engine that answers as the base whatever it is asked for."""

        async def _generate(self, path, body, model, receive, send):  # type: ignore[no-untyped-def]
            await super()._generate(path, body, "base", receive, send)

    # probes would reject such experts at once
    async with running_gateway(tmp_path / "home", Mixed(), probe_adapters=False) as running:
        done = await asyncio.to_thread(load_test, "recipes", "--url", running.url)
    assert done.returncode == 1
    assert "× the engine was asked for another recipe than the header says" in done.stdout


@pytest.mark.parametrize(
    "scenarios",
    [("engine-killed", "gateway-killed"), ("durability", "limits", "soak")],
    ids=lambda names: "+".join(names),
)
def test_scenarios_with_a_gateway_of_their_own(scenarios: tuple[str, ...], tmp_path: Path) -> None:
    given = (
        *scenarios, "--out", str(tmp_path), "--orders", "20", "--workers", "4", "--uptime-s", "1", "--limit-rate", "60",
        "--limit-seconds", "1.5", "--soak-seconds", "2",
    )  # fmt: skip
    checked(load_test(*given), tmp_path, len(scenarios))
