"""What the plugin reads from the environment."""

import subprocess
import sys
from pathlib import Path

import pytest

from server.vllm_plugin.options import PluginOptions, share_stats_file


def test_an_empty_environment_has_the_defaults() -> None:
    options = PluginOptions.from_environ({"MOERGATE_ADAPTERS_DIR": ""})
    assert options == PluginOptions(None, None, 2.0, fork_engine=False, stats_file=None)
    assert options.num_slots(5) == 5


def test_every_variable_is_read() -> None:
    options = PluginOptions.from_environ(
        {
            "MOERGATE_ADAPTERS_DIR": "/adapters",
            "MOERGATE_EXPERT_SLOTS": "8",
            "MOERGATE_MAX_SLOT_WAIT_S": "0.5",
            "MOERGATE_FORK_ENGINE": "1",
            "MOERGATE_STATS_FILE": "/tmp/stats.json",  # noqa: S108 - never opened
        }
    )
    assert options == PluginOptions(Path("/adapters"), 8, 0.5, fork_engine=True, stats_file=Path("/tmp/stats.json"))  # noqa: S108
    assert options.num_slots(5) == 8


def test_a_malformed_number_is_refused() -> None:
    with pytest.raises(ValueError, match="many"):
        PluginOptions.from_environ({"MOERGATE_EXPERT_SLOTS": "many"})


def test_child_processes_find_the_stats_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MOERGATE_STATS_FILE", "replaced below and restored afterwards")
    share_stats_file(tmp_path / "stats.json")
    code = "from server.vllm_plugin.options import PluginOptions; print(PluginOptions.from_environ().stats_file)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout.strip() == str(tmp_path / "stats.json")
