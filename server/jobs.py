"""Long work that clients can watch and cancel: its state, progress and errors. The last hundred jobs are in memory."""

from __future__ import annotations

import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from server.errors import Conflict, NotFound

MAX_JOBS = 100

State = Literal["queued", "running", "succeeded", "failed", "cancelled"]


class JobCancelled(Conflict):
    """The job was cancelled; raised at its next step."""


@dataclass
class Job:
    """One piece of long work. The thread that does the work writes it; every thread may read it.

    Attributes:
        phase: Description of the present phase.
        done, total: Steps of this phase; bytes of a download.
        error: Why the job failed.
        problems: The problems behind `error`, each ``{where, what, fix}``, if they are known one by one.
        result: The job's result, as the admin API shows it.
        on_cancel: Called when the job is cancelled; for work that waits and would not reach its next step soon.
    """

    kind: str
    subject: str
    job_id: str = field(default_factory=lambda: f"job-{uuid.uuid4().hex[:12]}")
    state: State = "queued"
    phase: str = ""
    done: int = 0
    total: int = 0
    error: str = ""
    problems: tuple[dict[str, str], ...] = ()
    result: dict[str, Any] | None = None
    on_cancel: Callable[[], object] | None = None
    created_at: float = field(default_factory=time.time)
    ended_at: float | None = None
    _cancelled: bool = False

    @property
    def ended(self) -> bool:
        """Whether the job has ended in any way."""
        return self.state in ("succeeded", "failed", "cancelled")

    def begin(self, phase: str) -> None:
        """Enter a phase; raises `JobCancelled` if the job was cancelled."""
        self.state, self.phase, self.done, self.total = "running", phase, 0, 0
        self.progress(0, 0)

    def progress(self, done: int, total: int) -> None:
        """Note the progress of the phase; raises `JobCancelled` if the job was cancelled."""
        self.done, self.total = done, total
        if self._cancelled:
            raise JobCancelled("cancelled")

    def cancel(self) -> None:
        """Request that the job ends at its next step."""
        self._cancelled = True
        if self.on_cancel is not None and not self.ended:
            self.on_cancel()

    def end(self, state: State, error: str = "") -> None:
        """Note how the job ended."""
        self.state, self.error, self.ended_at = state, error, time.time()

    def show(self) -> dict[str, Any]:
        """Return the job as the admin API shows it."""
        return {
            "id": self.job_id,
            "kind": self.kind,
            "subject": self.subject,
            "state": self.state,
            "phase": self.phase,
            "done": self.done,
            "total": self.total,
            "error": self.error or None,
            "problems": list(self.problems),
            "result": self.result,
            "created_at": self.created_at,
            "ended_at": self.ended_at,
        }


class Jobs:
    """The last jobs, oldest first. Running jobs are never removed."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[str, Job] = OrderedDict()

    def open(self, kind: str, subject: str) -> Job:
        """Create a job, which is queued; remove the oldest jobs that have ended."""
        job = Job(kind, subject)
        self._jobs[job.job_id] = job
        for old in [each for each in self._jobs.values() if each.ended][: max(0, len(self._jobs) - MAX_JOBS)]:
            del self._jobs[old.job_id]
        return job

    def get(self, job_id: str) -> Job:
        """Return a job by its id; raises `NotFound`."""
        if job_id not in self._jobs:
            raise NotFound(f"There is no job {job_id[:100]!r}; jobs are lost when the gateway stops.")
        return self._jobs[job_id]

    def all(self) -> list[Job]:
        """Return all jobs in memory, newest first."""
        return list(reversed(self._jobs.values()))
