"""CPU time and memory of another process, from Linux's ``/proc``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


def cpu_seconds_of(stat: str, ticks_per_s: int) -> float:
    """User and system time of a process with all its threads, from the text of ``/proc/PID/stat``.

    The command's name stands in parentheses and may hold spaces and parentheses itself: fields count from the last one.
    """
    fields = stat[stat.rindex(")") + 2 :].split()
    return (int(fields[11]) + int(fields[12])) / ticks_per_s  # utime and stime, fields 14 and 15 of proc(5)


def peak_rss_mib_of(status: str) -> float:
    """Largest resident set so far in MiB, from the text of ``/proc/PID/status``."""
    return _mib_of(status, "VmHWM:")


def rss_mib_of(status: str) -> float:
    """Resident set now in MiB, from the text of ``/proc/PID/status``."""
    return _mib_of(status, "VmRSS:")


def _mib_of(status: str, field: str) -> float:
    for line in status.splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise ValueError(f"no {field} the process has ended")


def cpu_model_of(cpuinfo: str) -> str:
    """Name of the first processor, from the text of ``/proc/cpuinfo``."""
    for line in cpuinfo.splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown processor"


@dataclass(frozen=True, slots=True)
class Process:
    """A running process, by its id."""

    pid: int

    def cpu_seconds(self) -> float:
        """CPU time so far."""
        return cpu_seconds_of(Path(f"/proc/{self.pid}/stat").read_text("utf-8"), os.sysconf("SC_CLK_TCK"))

    def peak_rss_mib(self) -> float:
        """Largest resident set so far."""
        return peak_rss_mib_of(Path(f"/proc/{self.pid}/status").read_text("utf-8"))

    def rss_mib(self) -> float:
        """Resident set now."""
        return rss_mib_of(Path(f"/proc/{self.pid}/status").read_text("utf-8"))

    def num_fds(self) -> int:
        """Open files and sockets."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))
