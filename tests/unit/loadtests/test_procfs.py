"""Reading /proc."""

from __future__ import annotations

import os
import sys
import time

import pytest
from bench.procfs import Process, cpu_model_of, cpu_seconds_of, peak_rss_mib_of


def test_cpu_time_of_a_command_with_a_hostile_name() -> None:
    stat = "42 (a b) R) c) S 1 42 42 0 -1 4194560 100 0 0 0 250 50 9 9 20 0 1 0 100 1000 10"
    assert cpu_seconds_of(stat, ticks_per_s=100) == 3.0


def test_peak_memory() -> None:
    assert peak_rss_mib_of("Name:\tx\nVmPeak:\t  999 kB\nVmHWM:\t    2048 kB\nVmRSS:\t 100 kB\n") == 2.0


def test_a_process_that_ended_has_no_memory() -> None:
    with pytest.raises(ValueError, match="ended"):
        peak_rss_mib_of("Name:\tx\nState:\tZ (zombie)\n")


def test_processor_name() -> None:
    assert cpu_model_of("processor\t: 0\nmodel name\t: Fast CPU @ 1 GHz\n\nmodel name\t: other\n") == "Fast CPU @ 1 GHz"
    assert cpu_model_of("Hardware : board\n") == "unknown processor"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")
def test_own_process() -> None:
    process = Process(os.getpid())
    before_s, spent_s = process.cpu_seconds(), time.process_time()
    while time.process_time() - spent_s < 0.1:
        sum(range(1000))
    assert process.cpu_seconds() - before_s == pytest.approx(0.1, abs=0.05)
    assert process.peak_rss_mib() > 1
