"""Who may join the batch: everything fits, requests of one expert go together, nobody starves."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from server.vllm_plugin.engine_core.slot_admission import SlotAdmission, WaitingRequest

experts = st.frozensets(st.sampled_from("abcdefgh"), max_size=3)


def waiting(*sets: str, waited_s: float = 0.0) -> list[WaitingRequest]:
    return [WaitingRequest(frozenset(names), waited_s) for names in sets]


@given(st.lists(experts, max_size=6), st.lists(st.tuples(experts, st.floats(0, 10)), max_size=12), st.integers(3, 8))
def test_the_batch_always_fits(
    running: list[frozenset[str]], queue: list[tuple[frozenset[str], float]], n: int
) -> None:
    used = frozenset().union(*running)
    if len(used) > n:
        return
    admission = SlotAdmission(n, max_wait_s=5.0)
    asked = [WaitingRequest(*entry) for entry in queue]
    joined = admission.choose(running, asked)
    after = used.union(*(request.experts for request, may in zip(asked, joined, strict=True) if may))
    assert len(after) <= n
    for request, may in zip(asked, joined, strict=True):
        if not request.experts:  # the base needs no slot
            assert may


def test_requests_of_an_expert_in_use_join_from_behind() -> None:
    admission = SlotAdmission(2, 5.0)
    assert admission.choose([frozenset("a"), frozenset("b")], waiting("c", "a", "", "ab", "ac")) == [
        False, True, True, True, False,
    ]  # fmt: skip


def test_idle_residents_come_before_what_must_be_loaded() -> None:
    admission = SlotAdmission(2, 5.0)
    admission.choose([], waiting("a", "b"))
    assert admission.choose([frozenset("b")], waiting("c", "a")) == [False, True]


def test_who_has_waited_too_long_gets_the_next_slot() -> None:
    admission = SlotAdmission(2, 5.0)
    running = [frozenset("a"), frozenset("a"), frozenset("b")]
    late = [WaitingRequest(frozenset("c"), 6.0), *waiting("b", "a", "d")]
    assert admission.choose(running, late) == [False, False, True, False]  # b, the less used, takes nobody in
    assert admission.choose(running[:2], late) == [True, False, True, False]  # and c has its slot


@dataclass
class Job:
    experts: frozenset[str]
    arrived: int
    steps: int
    began: int | None = None


def test_waits_are_bounded_under_an_endless_stream(rng: np.random.Generator) -> None:
    """Zipf-distributed requests for three times as many experts as slots, more than can be served at once."""
    num_experts, num_slots, max_wait, longest = 12, 4, 20, 10
    share = 1 / np.arange(1, num_experts + 1)
    admission = SlotAdmission(num_slots, float(max_wait))
    queue: list[Job] = []
    running: list[Job] = []
    waits: list[int] = []
    for step in range(3000):
        if step < 2000:
            for _ in range(rng.poisson(1.5)):
                expert = f"e{rng.choice(num_experts, p=share / share.sum())}"
                queue.append(Job(frozenset({expert}), step, int(rng.integers(1, longest + 1))))
        joined = admission.choose([job.experts for job in running], _as_waiting(queue, step))
        for job, may in zip(list(queue), joined, strict=True):
            if may and len(running) < 32:
                queue.remove(job)
                running.append(job)
                waits.append(step - job.arrived)
        for job in running:
            job.steps -= 1
        running = [job for job in running if job.steps > 0]
    assert not queue
    # One starving request after another: each may take up to its turn, but the queue of experts is bounded.
    assert max(waits) <= max_wait + num_experts * longest


def _as_waiting(queue: Sequence[Job], step: int) -> list[WaitingRequest]:
    return [WaitingRequest(job.experts, float(step - job.arrived)) for job in queue]
