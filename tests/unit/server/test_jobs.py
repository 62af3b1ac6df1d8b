"""Jobs: how far they are, and how they end."""

import pytest

from server.errors import NotFound
from server.jobs import MAX_JOBS, JobCancelled, Jobs


def test_a_job_ends_at_its_next_step_after_it_was_cancelled() -> None:
    job = Jobs().open("fit", "auto")
    job.begin("embedding")
    job.progress(1, 3)
    assert (job.show()["phase"], job.show()["done"], job.show()["state"]) == ("embedding", 1, "running")
    job.cancel()
    with pytest.raises(JobCancelled):
        job.progress(2, 3)
    with pytest.raises(JobCancelled):
        job.begin("fitting")
    job.end("cancelled")
    assert job.ended
    assert job.show()["ended_at"] is not None


def test_old_jobs_are_forgotten_but_running_ones_kept() -> None:
    jobs = Jobs()
    running = jobs.open("fit", "long")
    for _ in range(2 * MAX_JOBS):
        jobs.open("fit", "short").end("succeeded")
    assert jobs.get(running.job_id) is running
    assert len(jobs.all()) <= MAX_JOBS + 1
    with pytest.raises(NotFound):
        jobs.get("job-of-yore")
