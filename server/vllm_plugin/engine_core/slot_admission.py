"""Decides which waiting requests may join the batch so that all their experts fit into the slots; knows no vLLM.

1. A request whose experts the batch already uses joins at once, whatever its position in the queue, so that requests
   for one expert share its stay in a slot.
2. Requests whose other experts are resident but idle come next, because they need no load; then all others in order of
   arrival. Each joins only if all experts of the batch still fit.
3. No request starves. Once a request has waited `max_wait_s`, no other request brings in a new expert until it has
   joined, and as many experts as it needs slots for (those with the fewest running requests) take no further requests.
   So it waits at most `max_wait_s` plus the remaining time of what runs on those experts.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WaitingRequest:
    """A request in the queue.

    Attributes:
        experts: The experts that the request needs.
        waited_s: Time since its arrival.
    """

    experts: frozenset[str]
    waited_s: float


class SlotAdmission:
    """Decides for each step; remembers which experts are in slots.

    Args:
        num_slots: Experts that can be resident.
        max_wait_s: Time after which a waiting request takes precedence.
    """

    def __init__(self, num_slots: int, max_wait_s: float) -> None:
        self._num_slots = num_slots
        self._max_wait_s = max_wait_s
        self._resident: OrderedDict[str, None] = OrderedDict()

    def choose(self, running: Sequence[frozenset[str]], waiting: Sequence[WaitingRequest]) -> list[bool]:
        """Decide for each waiting request, in queue order, whether it may join the batch.

        Args:
            running: The experts of each running request.
            waiting: The queue.
        """
        used = frozenset().union(*running) if running else frozenset()
        admitted = [False] * len(waiting)
        starving = self._starving(used, waiting)
        closed = frozenset() if starving is None else self._closed(running, used, waiting[starving].experts)
        if starving is not None and self._fits(used, waiting[starving].experts):
            admitted[starving] = True
            used |= waiting[starving].experts
            starving, closed = None, frozenset()
        for may_bring in (frozenset(), frozenset(self._resident), None):
            if may_bring != frozenset() and starving is not None:
                break  # until the starving request has joined, others bring in no expert
            for number, request in enumerate(waiting):
                new = request.experts - used
                brings_too_much = may_bring is not None and not new <= may_bring
                if admitted[number] or brings_too_much or request.experts & closed:
                    continue
                if self._fits(used, request.experts):
                    admitted[number] = True
                    used |= request.experts
        self._remember(used)
        return admitted

    def _fits(self, used: frozenset[str], experts: frozenset[str]) -> bool:
        return len(used | experts) <= self._num_slots

    def _starving(self, used: frozenset[str], waiting: Sequence[WaitingRequest]) -> int | None:
        """The index of the first request that has waited too long and still needs a slot."""
        for number, request in enumerate(waiting):
            if request.waited_s >= self._max_wait_s and not request.experts <= used:
                return number
        return None

    def _closed(
        self, running: Sequence[frozenset[str]], used: frozenset[str], needed: frozenset[str]
    ) -> frozenset[str]:
        """Experts that take no further requests, so that their slots become free for the needed experts."""
        num_to_free = len(used | needed) - self._num_slots
        if num_to_free <= 0:
            return frozenset()
        load = Counter(expert for experts in running for expert in experts)
        return frozenset(sorted(used - needed, key=lambda expert: (load[expert], expert))[:num_to_free])

    def _remember(self, used: frozenset[str]) -> None:
        for expert in sorted(used):
            self._resident[expert] = None
            self._resident.move_to_end(expert)
        while len(self._resident) > self._num_slots:
            self._resident.popitem(last=False)
