"""A job's states: every step that is allowed, and every one that is not."""

from dataclasses import replace
from itertools import product

import pytest

from comfyproxy.core.jobs import BackendId, InvalidTransition, Job, JobState, advance

Q, D, A = JobState.QUEUED, JobState.DISPATCHING, JobState.ACCEPTED
S, F, C = JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED

ALLOWED = {(Q, D), (Q, F), (Q, C), (D, A), (D, Q), (D, S), (D, F), (D, C), (A, Q), (A, S), (A, F), (A, C)}
JOB = Job(prompt_id="p", number=1.0, client_id="c", fingerprint="f", created_s=1.0)


@pytest.mark.parametrize(("state", "to"), sorted(ALLOWED))
def test_a_step_of_the_table_is_made(state: JobState, to: JobState) -> None:
    job = replace(JOB, state=state, attempts=1)
    moved = advance(job, to, attempts=2, backend=BackendId("a"))
    assert moved == replace(JOB, state=to, attempts=2, backend=BackendId("a"))
    assert (job.state, job.attempts) == (state, 1)


@pytest.mark.parametrize(("state", "to"), sorted(set(product(JobState, JobState)) - ALLOWED))
def test_any_other_step_is_a_bug_of_the_caller(state: JobState, to: JobState) -> None:
    with pytest.raises(InvalidTransition, match=f"p: {state} -> {to}"):
        advance(replace(JOB, state=state), to)


def test_nothing_can_happen_to_what_has_ended() -> None:
    assert {state for state in JobState if state.is_terminal} == {S, F, C}


def test_the_backend_is_told_the_id_that_it_knows() -> None:
    assert JOB.id_on_backend == "p"
    assert replace(JOB, backend_prompt_id="minted").id_on_backend == "minted"
