"""What the scheduler keeps out of a step, and how a request ends whose expert cannot be loaded."""

from collections.abc import Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from server.vllm_plugin.engine_core import scheduler as module
from server.vllm_plugin.engine_core.scheduler import _FitsSlots
from server.vllm_plugin.vllm_contract import UnsupportedVllm

A, B, C = "a@00000000", "b@00000000", "c@00000000"


@dataclass(eq=False)
class Request:
    """As much of vLLM's request as the scheduler reads."""

    request_id: str
    lora_request: Any
    arrival_time: float = 0.0


class Queue(list[Request]):
    """As vLLM's first-come queue."""

    def remove_requests(self, requests: Iterable[Request]) -> None:
        gone = list(requests)
        self[:] = [request for request in self if request not in gone]

    add_request = list.append


class VllmScheduler:
    """As much of vLLM's scheduler: a step takes all that waits; failed requests end when its output is there."""

    def __init__(self) -> None:
        self.lora_config = SimpleNamespace(max_loras=2)
        self.waiting, self.running = Queue(), list[Request]()
        self.grammar_compile_error_reqs = set[str]()

    def schedule(self) -> list[str]:
        taken = list(self.waiting)
        self.waiting.remove_requests(taken)
        self.running += taken
        return [request.request_id for request in taken]


class Scheduled(_FitsSlots, VllmScheduler):  # type: ignore[misc]
    """Ours on top."""


def request(name: str, recipe: str | None, arrival: float) -> Request:
    lora = None if recipe is None else SimpleNamespace(lora_name=recipe, lora_path=recipe, lora_int_id=hash(recipe))
    return Request(name, lora, arrival)


def test_what_does_not_fit_waits_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOERGATE_EXPERT_SLOTS", raising=False)
    monkeypatch.setattr(module, "load_ahead", lambda lora: None)
    monkeypatch.setattr(module.time, "time", lambda: 10.0)
    scheduler = Scheduled()
    asked = [("1", A), ("2", B), ("3", C), ("4", None), ("5", A)]
    scheduler.waiting += [request(name, recipe, 9.0 + 0.1 * n) for n, (name, recipe) in enumerate(asked)]
    assert scheduler.schedule() == ["1", "2", "4", "5"]
    assert [waits.request_id for waits in scheduler.waiting] == ["3"]
    scheduler.running.clear()
    assert scheduler.schedule() == ["3"]


def test_a_request_whose_expert_cannot_be_loaded_ends_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def load(lora: Any) -> None:
        tried.append(lora.lora_name)
        if lora.lora_name == B:
            raise OSError("the disk is gone")

    monkeypatch.setattr(module, "load_ahead", load)
    scheduler = Scheduled()
    scheduler.waiting += [request("1", A, 0.0), request("2", B, 0.1), request("3", None, 0.2)]
    assert scheduler.schedule() == ["1", "3"]
    assert scheduler.grammar_compile_error_reqs == {"2"}
    assert scheduler.schedule() == []  # it is not tried again while vLLM ends it
    assert tried == [A, B]


def test_a_vllm_that_cannot_end_a_request_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(VllmScheduler):
        def __init__(self) -> None:
            super().__init__()
            del self.grammar_compile_error_reqs

    with pytest.raises(UnsupportedVllm, match="cannot end a single request"):
        type("Scheduled", (_FitsSlots, Other), {})()
