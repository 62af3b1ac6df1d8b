"""Counts of hits, loads and evictions of experts, counted in the worker and shown by the API server.

The two are different processes, so the counts go through a small file. The API server chooses its name, and its
children inherit the name (``MOERGATE_STATS_FILE``). The worker replaces the file at most once a second; the API server
reads it for each request for its ``/metrics``. The metric ``moergate_plugin_info`` shows a gateway that this engine
executes mixes and gates.
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
class ResidencyCounts:
    """Counts since the engine's start; `load_s` includes `activate_s`."""

    hits: int = 0
    disk_loads: int = 0
    memory_loads: int = 0
    evictions: int = 0
    load_s: float = 0.0
    activate_s: float = 0.0
    resident: list[str] = field(default_factory=list)


class ResidencyStats:
    """Counts in one worker; a thread writes the file after changes.

    Args:
        path: The file; None disables writing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._changed = threading.Event()
        self._writer: threading.Thread | None = None
        self.counts = ResidencyCounts()

    def hit(self) -> None:
        """Count a use of an expert that was in its slot."""
        self.counts.hits += 1
        self._note()

    def missed(self, took_s: float, *, from_disk: bool) -> None:
        """Count an expert that was brought into a slot.

        Args:
            took_s: Total time.
            from_disk: Whether its files were read; else it was in memory.
        """
        self.counts.load_s += took_s
        if from_disk:
            self.counts.disk_loads += 1
        else:
            self.counts.memory_loads += 1
        self._note()

    def activated(self, expert: str, took_s: float) -> None:
        """Note that an expert got a slot; packing it took `took_s` seconds."""
        self.counts.resident.append(expert)
        self.counts.activate_s += took_s
        self._note()

    def evicted(self, expert: str) -> None:
        """Note that an expert lost its slot; no effect if it had none."""
        if expert in self.counts.resident:
            self.counts.resident.remove(expert)
            self.counts.evictions += 1
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
                scratch.write_text(json.dumps(asdict(self.counts)))
                scratch.replace(self._path)
            except OSError:  # the API server is gone, and its folder with it
                return
            pause.wait(WRITE_EVERY_S)


class ResidencyCollector(Collector):
    """Shows the worker's counts in the API server's metrics.

    Args:
        path: The file that the worker writes.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def collect(self) -> Iterator[Metric]:
        """Read the file and yield its counts."""
        try:
            counts = ResidencyCounts(**json.loads(self._path.read_text()))
        except (OSError, ValueError, TypeError):
            counts = ResidencyCounts()
        info = GaugeMetricFamily("moergate_plugin_info", "Moergate's plugin executes recipes here.", labels=["vllm"])
        info.add_metric([", ".join(SUPPORTED)], 1)
        yield info
        resident = GaugeMetricFamily("moergate_expert_resident", "Experts in a slot.", labels=["expert"])
        for expert in counts.resident:
            resident.add_metric([expert], 1)
        yield resident
        loads = CounterMetricFamily("moergate_expert_loads", "Experts brought into a slot.", labels=["source"])
        loads.add_metric(["disk"], counts.disk_loads)
        loads.add_metric(["memory"], counts.memory_loads)
        yield loads
        for name, text, value in (
            ("moergate_expert_slot_hits", "Times that a step found an expert in its slot.", counts.hits),
            ("moergate_expert_evictions", "Experts that lost their slot.", counts.evictions),
            ("moergate_expert_load_seconds", "Time for bringing experts into slots.", counts.load_s),
            ("moergate_expert_activate_seconds", "Part of it for packing them.", counts.activate_s),
        ):
            yield CounterMetricFamily(name, text, value=value)


def install_stats(options: PluginOptions) -> None:
    """Choose the file and show its counts, in the API server; its children inherit the file and install nothing."""
    if options.stats_file is not None:
        return
    handle, name = tempfile.mkstemp(prefix="moergate-", suffix=".json")
    os.close(handle)
    path = Path(name)
    share_stats_file(path)
    owner = os.getpid()
    atexit.register(lambda: path.unlink(missing_ok=True) if os.getpid() == owner else None)
    REGISTRY.register(ResidencyCollector(path))
