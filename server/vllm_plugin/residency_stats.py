"""What happens to experts in the engine: hits, loads, evictions. Counted in the worker, shown by the API server.

They are different processes, so the figures go through a small file, whose name the API server makes and its
children inherit (``MOERGATE_STATS_FILE``). The worker replaces it at most once a second; the API server reads it
when its ``/metrics`` is asked. There ``moergate_plugin_info`` also tells a gateway that this engine executes mixes
and gates.
"""

from __future__ import annotations

import atexit
import json
import os
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from server.vllm_plugin.options import PluginOptions, share_stats_file
from server.vllm_plugin.vllm_contract import SUPPORTED

WRITE_EVERY_S = 1.0


@dataclass
class ResidencyFigures:
    """Counters since the engine's start; `load_s` holds `activate_s`."""

    hits: int = 0
    disk_loads: int = 0
    memory_loads: int = 0
    evictions: int = 0
    load_s: float = 0.0
    activate_s: float = 0.0
    resident: list[str] = field(default_factory=list)


class ResidencyStats:
    """Counts in one worker; a thread writes what has changed.

    Args:
        path: File to write to; None writes nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._changed = threading.Event()
        self._writer: threading.Thread | None = None
        self.figures = ResidencyFigures()

    def hit(self) -> None:
        """An expert was in its slot already."""
        self.figures.hits += 1
        self._note()

    def missed(self, took_s: float, *, from_disk: bool) -> None:
        """An expert had to be brought into a slot, in `took_s` seconds in all."""
        self.figures.load_s += took_s
        if from_disk:
            self.figures.disk_loads += 1
        else:
            self.figures.memory_loads += 1
        self._note()

    def activated(self, expert: str, took_s: float) -> None:
        """An expert got a slot; packing it took `took_s` seconds."""
        self.figures.resident.append(expert)
        self.figures.activate_s += took_s
        self._note()

    def evicted(self, expert: str) -> None:
        """An expert lost its slot, if it had one."""
        if expert in self.figures.resident:
            self.figures.resident.remove(expert)
            self.figures.evictions += 1
            self._note()

    def _note(self) -> None:
        if self._path is None or self._changed.is_set():
            return
        self._changed.set()
        if self._writer is None:
            self._writer = threading.Thread(target=self._write, name="moergate-stats", daemon=True)
            self._writer.start()

    def _write(self) -> None:
        assert self._path is not None  # noqa: S101
        pause = threading.Event()
        while self._changed.wait():
            self._changed.clear()
            scratch = self._path.with_suffix(".new")
            try:
                scratch.write_text(json.dumps(asdict(self.figures)))
                scratch.replace(self._path)
            except OSError:  # the folder is gone with the API server
                return
            pause.wait(WRITE_EVERY_S)


class ResidencyCollector(Collector):
    """Shows the worker's figures in the API server's own registry."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def collect(self) -> Iterator[Metric]:
        """Read the file and give its figures."""
        try:
            figures = ResidencyFigures(**json.loads(self._path.read_text()))
        except (OSError, ValueError, TypeError):
            figures = ResidencyFigures()
        info = GaugeMetricFamily("moergate_plugin_info", "Moergate's plugin executes recipes here.", labels=["vllm"])
        info.add_metric([", ".join(SUPPORTED)], 1)
        yield info
        resident = GaugeMetricFamily("moergate_expert_resident", "Experts in a slot.", labels=["expert"])
        for expert in figures.resident:
            resident.add_metric([expert], 1)
        yield resident
        loads = CounterMetricFamily("moergate_expert_loads", "Experts brought into a slot.", labels=["source"])
        loads.add_metric(["disk"], figures.disk_loads)
        loads.add_metric(["memory"], figures.memory_loads)
        yield loads
        for name, text, value in (
            ("moergate_expert_slot_hits", "Times that a step found an expert in its slot.", figures.hits),
            ("moergate_expert_evictions", "Experts that lost their slot.", figures.evictions),
            ("moergate_expert_load_seconds", "Time for bringing experts into slots.", figures.load_s),
            ("moergate_expert_activate_seconds", "Part of it for packing them.", figures.activate_s),
        ):
            yield CounterMetricFamily(name, text, value=value)


def install_stats(options: PluginOptions) -> None:
    """In the API server: choose the file and show it. In its children: nothing, for they inherit the file's name."""
    if options.stats_file is not None:
        return
    handle, name = tempfile.mkstemp(prefix="moergate-", suffix=".json")
    os.close(handle)
    path = Path(name)
    share_stats_file(path)
    owner = os.getpid()
    atexit.register(lambda: path.unlink(missing_ok=True) if os.getpid() == owner else None)
    REGISTRY.register(ResidencyCollector(path))
