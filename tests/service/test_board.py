"""The board: each question about unfinished jobs, and its answer through a job's life."""

from typing import Any

import pytest
from service_support import make_fleet, make_job, make_placement

from comfyproxy.core.jobs import BackendId, InvalidTransition, JobState
from comfyproxy.core.needs import Needs
from comfyproxy.service.board import Board
from comfyproxy.service.fleet import Backend
from comfyproxy.service.live import LiveJob
from comfyproxy.service.payloads import PayloadCache
from comfyproxy.store.memory import MemoryStore

A, B = BackendId("a"), BackendId("b")


@pytest.fixture
def board() -> Board:
    return make_board()


def make_board(*, max_concurrent: int = 10) -> Board:
    fleet = make_fleet("a", "b", max_concurrent=max_concurrent)
    return Board(fleet, PayloadCache(MemoryStore()), make_placement(fleet))


def backend(board: Board, name: str) -> Backend:
    found = board._fleet.get(name)
    assert found is not None
    return found


def add(board: Board, prompt_id: str, *, is_admitted: bool = True, **job: Any) -> LiveJob:
    live = LiveJob(make_job(prompt_id, **job), is_admitted=is_admitted)
    board.add(live)
    return live


def waiting(board: Board, *numbers: float) -> list[LiveJob]:
    """Let jobs wait."""
    jobs = [add(board, f"p{place}", number=number) for place, number in enumerate(numbers)]
    for live in jobs:
        board.queue(live)
    return jobs


def taken(board: Board) -> list[str]:
    order = []
    while (found := board.take()) is not None:
        order.append(found[0].prompt_id)
    return order


def test_jobs_wait_by_number_and_then_in_the_order_in_which_they_came(board: Board) -> None:
    waiting(board, 3, 1, 2, 1, -4)
    assert board.waiting_count == 5
    assert taken(board) == ["p4", "p1", "p3", "p2", "p0"]
    assert (board.waiting_count, board.count) == (0, 5)


def test_whoever_takes_a_job_out_is_told_where_to_and_why() -> None:
    board = make_board(max_concurrent=1)
    one, two, three = waiting(board, 1, 2, 3)
    assert board.take() == (one, A, "its turn")
    board.move(one, JobState.DISPATCHING, backend=A)
    assert board.take() == (two, B, "its turn")
    board.move(two, JobState.DISPATCHING, backend=B)
    assert board.take() is None
    board.move(one, JobState.QUEUED)
    assert board.take() == (three, A, "its turn")


def test_those_passed_over_keep_their_place() -> None:
    board = make_board(max_concurrent=1)
    add(board, "x", state=JobState.ACCEPTED, backend=A)
    jobs = [add(board, f"p{number}", number=1) for number in range(3)]
    for live in jobs:
        live.needs = Needs(pinned=B if live.prompt_id == "p2" else A)
        board.queue(live)
    assert board.take() == (jobs[2], B, "its turn: those before it wait for other backends")
    assert board.take() is None
    board.remove(board._live["x"])
    assert taken(board) == ["p0"]


def test_a_job_with_a_past_of_its_own_stands_in_nobodys_way() -> None:
    board = make_board(max_concurrent=1)
    add(board, "x", state=JobState.ACCEPTED, backend=B)
    first, second = waiting(board, 1, 2)
    first.ghosts.add(A)
    board.relist(first)
    found = board.take()
    assert found is not None
    assert found[:2] == (second, A)
    first.ghosts.clear()
    board.relist(first)
    board.remove(second)
    found = board.take()
    assert found is not None
    assert found[:2] == (first, A)


def test_only_what_waits_is_put_where_it_belongs(board: Board) -> None:
    live = add(board, "p")
    board.relist(live)
    assert board.waiting_count == 0
    board.move(live, JobState.DISPATCHING, backend=A)
    board.relist(live)
    assert (board.waiting_count, board.take()) == (0, None)


def test_what_is_between_its_judgement_and_the_queue_keeps_its_turn(board: Board) -> None:
    live = add(board, "p", number=1)
    live.is_visitor = True
    board.move(live, JobState.DISPATCHING, backend=A)
    assert board.is_anybody_before(2)
    board.move(live, JobState.ACCEPTED)
    board.move(live, JobState.QUEUED)
    assert board.is_anybody_before(2)
    assert not board.is_anybody_before(1)
    board.queue(live)
    assert not board.is_anybody_before(2)
    assert taken(board) == ["p"]


def test_one_that_stays_or_goes_where_it_was_judged_is_before_nobody(board: Board) -> None:
    stays, leaves = add(board, "stays", number=1), add(board, "leaves", number=1)
    for live in (stays, leaves):
        live.is_visitor = True
        board.move(live, JobState.DISPATCHING, backend=A)
    board.stay(stays)
    assert board.is_anybody_before(2)
    board.remove(leaves)
    assert not board.is_anybody_before(2)


def test_jobs_that_have_gone_are_not_taken_out(board: Board) -> None:
    jobs = waiting(board, 1, 2, 3, 4)
    board.remove(jobs[0])
    board.unqueue(jobs[1])
    board.move(jobs[2], JobState.DISPATCHING, backend=A)
    assert board.waiting_count == 1
    assert taken(board) == ["p3"]


def test_one_that_was_taken_out_of_the_queue_can_be_put_back(board: Board) -> None:
    jobs = waiting(board, 1, 2)
    board.unqueue(jobs[0])
    assert board.waiting_count == 1
    board.queue(jobs[0])
    assert taken(board) == ["p0", "p1"]
    assert taken(board) == []


def test_a_job_counts_once_it_is_admitted(board: Board) -> None:
    live = add(board, "p", is_admitted=False)
    assert (board.count, board.job("p"), list(board.unfinished()), board.pending()) == (0, None, [], [])
    assert board.get("p") is live
    board.admit(live)
    board.admit(live)
    assert (board.count, board.job("p"), list(board.unfinished())) == (1, live.job, [live.job])
    board.remove(live)
    board.remove(live)
    assert (board.count, board.job("p"), board.get("p")) == (0, None, None)
    board.admit(live)
    assert board.count == 1 - 1


def test_one_that_is_removed_before_it_was_admitted_never_counted(board: Board) -> None:
    live = add(board, "p", is_admitted=False)
    version = board.version
    board.remove(live)
    assert (board.count, board.version) == (0, version)


def test_what_starts_is_admitted(board: Board) -> None:
    live = add(board, "p", is_admitted=False, state=JobState.DISPATCHING, backend=A)
    board.started(live, now_s=7.0)
    assert (board.count, live.is_admitted, live.job.started_s) == (1, True, 7.0)
    board.started(live, now_s=8.0)
    assert (board.count, live.job.started_s) == (1, 7.0)


def test_a_job_is_found_by_the_id_that_its_backend_knows(board: Board) -> None:
    live = add(board, "p")
    board.move(live, JobState.DISPATCHING, backend=A)
    assert board.find(A, "p") is live
    board.move(live, JobState.ACCEPTED, backend_prompt_id="minted")
    assert (board.find(A, "p"), board.find(A, "minted"), board.find(B, "minted")) == (None, live, None)
    assert board.on(A) == [live]
    board.move(live, JobState.QUEUED)
    assert (board.find(A, "minted"), board.on(A)) == (None, [])
    assert (live.job.backend, live.job.backend_prompt_id) == (None, None)


def test_a_job_takes_a_slot_of_its_backend_until_it_leaves(board: Board) -> None:
    live = add(board, "p")
    board.move(live, JobState.DISPATCHING, backend=A)
    assert backend(board, "a").in_flight == {"p"}
    board.move(live, JobState.QUEUED)
    assert backend(board, "a").in_flight == set()
    board.move(live, JobState.DISPATCHING, backend=B)
    board.move(live, JobState.SUCCEEDED)
    board.remove(live)
    assert backend(board, "b").in_flight == set()


def test_a_visitor_takes_none_until_it_stays(board: Board) -> None:
    live = add(board, "p")
    live.is_visitor = True
    board.move(live, JobState.DISPATCHING, backend=A)
    assert (backend(board, "a").in_flight, backend(board, "a").visitors) == (set(), {"p"})
    board.stay(live)
    assert (backend(board, "a").in_flight, backend(board, "a").visitors) == ({"p"}, set())


def test_a_visitor_that_starts_stays(board: Board) -> None:
    live = add(board, "p")
    live.is_visitor = True
    board.move(live, JobState.DISPATCHING, backend=A)
    board.started(live, now_s=1.0)
    assert (backend(board, "a").in_flight, backend(board, "a").visitors, live.is_visitor) == ({"p"}, set(), False)


def test_a_job_that_waits_again_knows_nothing_of_its_run(board: Board) -> None:
    live = add(board, "p", state=JobState.ACCEPTED, backend=A)
    board.started(live, now_s=1.0)
    live.node, live.is_settling = "5", True
    live.executed.add("5")
    live.tail.append("x")
    board.move(live, JobState.QUEUED)
    assert (live.is_running, live.is_settling, live.is_visitor) == (False, False, False)
    assert [live.node, *live.executed, *live.tail] == [None]
    assert (live.job.started_s, board.running_on(A), board.running(), board.is_running("p")) == (None, None, [], False)


def test_what_runs_and_what_waits_are_told_apart(board: Board) -> None:
    one = add(board, "one", number=2, state=JobState.ACCEPTED, backend=A)
    two = add(board, "two", number=1)
    add(board, "three", number=0, is_admitted=False)
    assert board.pending() == [two.job, one.job]
    board.started(one, now_s=1.0)
    assert (board.pending(), board.running()) == ([two.job], [one.job])
    assert (board.is_running("one"), board.is_running("two"), board.is_running("other")) == (True, False, False)
    assert (board.running_on(A), board.running_on(B)) == (one, None)


def test_the_running_node_of_a_client_is_that_of_its_last_start(board: Board) -> None:
    assert board.running_node("c") is None
    first = add(board, "first", state=JobState.ACCEPTED, backend=A)
    second = add(board, "second", state=JobState.ACCEPTED, backend=B)
    other = add(board, "other", client_id="d", state=JobState.ACCEPTED, backend=B)
    for live in (first, second, other):
        board.started(live, now_s=1.0)
    first.node = "1"
    assert board.running_node("c") == "1"
    second.node, other.node = "2", "3"
    assert (board.running_node("c"), board.running_node("d")) == ("2", "3")
    board.remove(second)
    assert board.running_node("c") == "1"
    board.remove(first)
    assert board.running_node("c") is None


def test_a_job_without_a_client_runs_all_the_same(board: Board) -> None:
    live = add(board, "p", client_id=None, state=JobState.ACCEPTED, backend=A)
    board.started(live, now_s=1.0)
    assert board.running_on(A) is live
    board.remove(live)
    assert board.running_on(A) is None


def test_a_forbidden_step_changes_nothing(board: Board) -> None:
    live = add(board, "p")
    board.queue(live)
    version = board.version
    with pytest.raises(InvalidTransition):
        board.move(live, JobState.ACCEPTED, backend=A)
    assert (live.job.state, board.waiting_count, board.on(A), board.version) == (JobState.QUEUED, 1, [], version)


def test_whatever_the_queue_shows_grows_the_version_and_is_announced(board: Board) -> None:
    heard: list[int] = []
    board.on_change = lambda: heard.append(board.count)
    live = add(board, "p", is_admitted=False)
    assert heard == []
    board.admit(live)
    board.move(live, JobState.DISPATCHING, backend=A)
    board.started(live, now_s=1.0)
    board.move(live, JobState.SUCCEEDED)
    board.remove(live)
    assert heard == [1, 1, 1, 1, 0]
    assert board.version == 5


def test_a_backend_that_is_not_configured_any_more_is_no_failure(board: Board) -> None:
    live = add(board, "p", state=JobState.ACCEPTED, backend=BackendId("gone"))
    assert board.on(BackendId("gone")) == [live]
    board.move(live, JobState.QUEUED)
    assert board.on(BackendId("gone")) == []


def test_what_leaves_the_board_leaves_the_cache_of_payloads(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    forgotten: list[str] = []
    monkeypatch.setattr(board.payloads, "forget", forgotten.append)
    board.remove(add(board, "p"))
    assert forgotten == ["p"]
