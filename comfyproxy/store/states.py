"""Which jobs may come to which method of a store: a mistake in the caller must not become a job that nobody ends."""

from comfyproxy.core.jobs import Job


def check_unfinished(job: Job) -> None:
    """Raise ValueError for a job that has ended: that is for `settle` and `cancel` to write."""
    if job.state.is_terminal:
        raise ValueError(f"{job.prompt_id}: a job that is {job.state} must be settled or cancelled")


def check_terminal(job: Job) -> None:
    """Raise ValueError for a job that has not ended."""
    if not job.state.is_terminal:
        raise ValueError(f"{job.prompt_id}: a job that is {job.state} has not ended")
