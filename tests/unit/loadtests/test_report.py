"""The report: tables, shares and verdicts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import bench_gateway
import orjson
import pytest
from bench.cases import BARE, DIRECT, FRESH, OFF, Capacity, Case, Latency, Target, per_core, share_of
from bench.machine import shown_command
from bench.phase import PhaseResult
from bench.procfs import Process
from bench.report import Report, show_errors, table


def case(name: str, stream: bool = False) -> Case:
    return Case(Target(name, 1, Process(1), "base", "few"), stream)


def result(latency_ms: float, num: int = 100, errors: dict[str, int] | None = None) -> PhaseResult:
    times = [latency_ms] * num
    return PhaseResult(num, errors or {}, float(num), times, times, [0.2] * num, [0.1] * num)


def report(off_per_core: float, off_ms: float) -> str:
    capacity = {case(name): Capacity() for name in (DIRECT, BARE, OFF)}
    capacity[case(DIRECT)].add(result(10), cpu_s=0.05, seconds=1)
    capacity[case(BARE)].add(result(10), cpu_s=0.1, seconds=1)
    capacity[case(OFF)].add(result(10), cpu_s=100 / off_per_core, seconds=1)
    latency = {case(name): Latency(50) for name in (DIRECT, OFF, FRESH)}
    latency[case(DIRECT)].add(result(10), result(10), cpu_s=0.1)
    latency[case(OFF)].add(result(off_ms), result(10), cpu_s=0.1)
    latency[case(FRESH)].add(result(17.5, errors={"status 503": 2}), result(10), cpu_s=0.1)
    return Report({"machine": "a | b"}, capacity, latency, ["A note."]).markdown()


def test_aims_met() -> None:
    text = report(off_per_core=800, off_ms=11)
    assert "| routing off: at least 70 % of the bare proxy's req/s per core | whole | 80 % | met |" in text
    assert "| routing off: overhead p50 at most 2 ms | whole | 1.00 ms | met |" in text
    assert "| fresh prompts: overhead p50 at most 8 ms | whole | 7.50 ms | met |" in text
    assert "2 × status 503" in text
    assert text.endswith("A note.\n")


def test_aims_missed_are_said() -> None:
    text = report(off_per_core=200, off_ms=30)
    assert "| whole | 20 % | **missed** |" in text
    assert "| routing off: overhead p50 at most 2 ms | whole | 20.00 ms | **missed** |" in text
    assert "| routing off: overhead p99 at most 10 ms | whole | 20.00 ms | **missed** |" in text


def test_every_row_has_all_columns() -> None:
    tables = [block for block in report(800, 11).split("\n\n") if block.startswith("|")]
    assert len(tables) == 3
    for block in tables:
        assert len({line.count("|") for line in block.splitlines()}) == 1


def test_table_escapes_bars() -> None:
    assert table(("a", "b"), [("1|2", "3")]) == "| a | b |\n| --- | --- |\n| 1\\|2 | 3 |"


def test_errors_most_frequent_first() -> None:
    assert show_errors(Counter()) == "0"
    assert show_errors(Counter({"x": 1, "y": 3})) == "3 × y, 1 × x"


def test_shares_are_taken_round_by_round() -> None:
    share = share_of([50.0, 30.0, 80.0], [100.0, 100.0, 100.0])
    assert (share.median, share.low, share.high) == (50, 30, 80)


def test_requests_a_core_of_no_cpu_time_are_unknown() -> None:
    assert per_core(result(1), cpu_s=2.0) == 50
    assert str(per_core(result(1), cpu_s=0.0)) == "nan"


def test_options() -> None:
    quick = bench_gateway.parse_options(["--quick", "--rate", "50"])
    assert (quick.rounds, quick.seconds, quick.rate) == (1, 1.5, 50)
    with pytest.raises(SystemExit):
        bench_gateway.parse_options(["--seconds", "0"])


def test_the_command_is_shown_without_the_reports_place() -> None:
    shown = shown_command(
        "bench_gateway.py", ["--quick", "--out", "here/r.md", "--rounds", "2", "--out=x", "--embedder", "a b"]
    )
    assert shown == "python loadtests/bench_gateway.py --quick --rounds 2 --embedder 'a b'"


def test_only_experts_whose_files_are_there_are_routed_to(tmp_path: Path) -> None:
    for name in ("whole", "half"):
        folder = tmp_path / "adapters" / name
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").touch()
    (tmp_path / "adapters" / "whole" / "adapter_model.safetensors").touch()
    library = tmp_path / "library.json"
    names = ("whole", "half", "absent")
    library.write_bytes(orjson.dumps([{"name": name, "source": {"path": f"adapters/{name}"}} for name in names]))
    found = bench_gateway.present_manifests(library)
    assert [manifest["name"] for manifest in found] == ["whole"]
    assert found[0]["source"] == {"path": str((tmp_path / "adapters" / "whole").resolve())}
    assert bench_gateway.present_manifests(tmp_path / "none.json") == []
