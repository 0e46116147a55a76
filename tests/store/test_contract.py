"""What every store does: the contract of JobStore and FileIndex."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from store_support import (
    PAYLOAD,
    Store,
    ended,
    entry_of,
    listed,
    make_job,
    make_summary,
    page,
    remembered,
    settle,
)

from comfyproxy.core.files import FileRecord, FileRef
from comfyproxy.core.jobs import BackendId, Job, JobState, Payload
from comfyproxy.store.memory import MemoryStore
from comfyproxy.store.sqlite import SqliteStore

MAX_HISTORY = 5
MAX_FILES = 10
A, B = BackendId("a"), BackendId("b")


@pytest.fixture(params=["memory", "sqlite"])
async def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Store]:
    """Makes stores on the same data, one after the other."""
    if request.param == "sqlite":
        return lambda: SqliteStore(
            tmp_path / "jobs.db", max_history=MAX_HISTORY, max_files=MAX_FILES, synchronous="normal"
        )
    store = MemoryStore(max_history=MAX_HISTORY, max_files=MAX_FILES)
    return lambda: store


@pytest.fixture
async def store(make: Callable[[], Store]) -> AsyncIterator[Store]:
    store = make()
    await store.open()
    yield store
    await store.close()


# Opening, closing, small values


async def test_all_that_was_written_is_there_after_a_restart(make: Callable[[], Store]) -> None:
    before, job = make(), make_job("p", 3.5, state=JobState.DISPATCHING, backend=A)
    await before.open()
    await before.set_meta("instance", "i-1")
    await before.insert(job, PAYLOAD)
    await settle(before, "q")
    await before.remember_copy(FileRef("x.png"), A, "d")
    await before.close()

    after = make()
    await after.open()
    assert await after.get_meta("instance") == "i-1"
    assert await after.unfinished() == [job]
    assert await after.payloads(["p"]) == {"p": PAYLOAD}
    assert await after.history(max_items=None, offset=0) == [("q", entry_of("q"))]
    assert await after.copies(FileRef("x.png")) == {A: "d"}
    await after.close()


async def test_closing_twice_is_as_good_as_once(make: Callable[[], Store]) -> None:
    store = make()
    await store.close()
    await store.open()
    await asyncio.gather(store.close(), store.close())
    await store.close()


async def test_a_meta_value_takes_the_place_of_the_one_before(store: Store) -> None:
    assert await store.get_meta("k") is None
    await store.set_meta("k", "1")
    await store.set_meta("k", "2")
    assert await store.get_meta("k") == "2"


async def test_numbers_count_on_over_clean_restarts(make: Callable[[], Store]) -> None:
    numbers = []
    for _ in range(3):
        store = make()
        await store.open()
        numbers += [store.next_number() for _ in range(3)]
        await store.close()
    assert numbers == list(range(9))


# Unfinished jobs


async def test_a_job_comes_back_as_it_was_written(store: Store) -> None:
    job = Job(
        prompt_id="p",
        number=-7.25,
        client_id=None,
        fingerprint="abc",
        created_s=1_700_000_000.123456,
        state=JobState.ACCEPTED,
        backend=BackendId("gpu-a"),
        backend_prompt_id="theirs",
        attempts=3,
        node_errors=b'{"4": {}}',
        outputs_to_execute=("9", "12"),
        workflow_id="w",
        started_s=1_700_000_001.000001,
        finished_s=None,
        error="ü",
    )
    await store.insert(job, PAYLOAD)
    assert await store.get("p") == job
    assert await store.unfinished() == [job]


async def test_an_unknown_job_is_none(store: Store) -> None:
    assert await store.get("?") is None
    assert await store.history_entry("?") is None
    assert await store.summary("?") is None
    assert await store.payloads(["?"]) == {}


async def test_an_update_changes_the_job_and_keeps_the_payload(store: Store) -> None:
    await store.insert(make_job("p"), PAYLOAD)
    changed = make_job("p", 4.0, state=JobState.ACCEPTED, backend=A)
    await store.update(changed)
    assert await store.get("p") == changed
    assert await store.payloads(["p"]) == {"p": PAYLOAD}


async def test_an_update_of_an_unknown_job_makes_none(store: Store) -> None:
    await store.update(make_job("p"))
    assert await store.get("p") is None


async def test_a_late_update_does_not_bring_back_what_has_ended(store: Store) -> None:
    await store.insert(make_job("p"), PAYLOAD)
    await settle(store, "p")
    await store.update(make_job("p", state=JobState.ACCEPTED))
    assert await store.get("p") == ended(make_job("p"))
    assert await store.unfinished() == []


async def test_a_wrong_state_is_the_callers_bug(store: Store) -> None:
    with pytest.raises(ValueError, match="succeeded must be settled"):
        await store.update(ended(make_job("p")))
    with pytest.raises(ValueError, match="succeeded must be settled"):
        await store.insert(ended(make_job("p")), PAYLOAD)
    with pytest.raises(ValueError, match="queued has not ended"):
        await store.settle(make_job("p"), b"{}", make_summary("p"))
    with pytest.raises(ValueError, match="queued has not ended"):
        await store.cancel(make_job("p"))


async def test_unfinished_jobs_come_by_number_and_equals_in_the_order_in_which_they_came(store: Store) -> None:
    for prompt_id, number in (("a", 2.0), ("b", -1.0), ("c", 2.0), ("d", math.inf), ("e", 0.5), ("f", -math.inf)):
        await store.insert(make_job(prompt_id, number), PAYLOAD)
    await store.update(make_job("a", 2.0, state=JobState.DISPATCHING))
    assert [job.prompt_id for job in await store.unfinished()] == ["f", "b", "e", "a", "c", "d"]


async def test_inserting_a_known_id_replaces_it(store: Store) -> None:
    await store.insert(make_job("p", 1.0), PAYLOAD)
    other = Payload(graph=b"{}")
    await store.insert(make_job("p", 2.0), other)
    assert await store.unfinished() == [make_job("p", 2.0)]
    assert await store.payloads(["p"]) == {"p": other}


async def test_a_discarded_job_leaves_nothing(store: Store) -> None:
    await store.insert(make_job("p"), PAYLOAD)
    await store.discard("p")
    await store.discard("unknown")
    assert await store.get("p") is None
    assert await store.payloads(["p"]) == {}


async def test_a_job_that_has_ended_is_not_discarded(store: Store) -> None:
    await settle(store, "p")
    await store.discard("p")
    assert await remembered(store) == ["p"]


async def test_payloads_are_of_those_asked_for_that_are_unfinished(store: Store) -> None:
    for prompt_id in "abc":
        await store.insert(make_job(prompt_id), Payload(graph=prompt_id.encode()))
    await settle(store, "b")
    assert await store.payloads(["c", "b", "?", "a"]) == {"c": Payload(graph=b"c"), "a": Payload(graph=b"a")}
    assert await store.payloads([]) == {}


@pytest.mark.parametrize("number", [0.1, -0.0, 1e-308, 1.7976931348623157e308, 2.0**53 + 2, math.inf, -math.inf])
async def test_numbers_are_exact(store: Store, number: float) -> None:
    await store.insert(make_job("p", number), PAYLOAD)
    job = await store.get("p")
    assert job is not None
    assert job.number == number


async def test_a_number_that_is_none_survives(store: Store) -> None:
    await store.insert(make_job("p", math.nan), PAYLOAD)
    await store.insert(make_job("q", -math.inf), PAYLOAD)
    first, second = await store.unfinished()
    assert math.isnan(first.number)
    assert second.prompt_id == "q"


@pytest.mark.parametrize(
    "prompt_id", ["", "\U0001f525 ü", "a\x00b", "\ud800", "x\udfffy", "123", "1e5", "'; --", "p" * 5000]
)
async def test_any_text_is_an_id(store: Store, prompt_id: str) -> None:
    job = make_job(
        prompt_id, client_id=prompt_id, workflow_id=prompt_id, error=prompt_id, outputs_to_execute=(prompt_id,)
    )
    await store.insert(job, PAYLOAD)
    assert await store.get(prompt_id) == job
    assert await store.payloads([prompt_id]) == {prompt_id: PAYLOAD}
    summary = make_summary(prompt_id, workflow_id=prompt_id)
    await store.settle(ended(job), b"{}", summary)
    assert await store.history(max_items=None, offset=0) == [(prompt_id, b"{}")]
    assert await store.summary(prompt_id) == summary
    assert await listed(store, workflow_id=prompt_id) == [prompt_id]
    await store.set_meta(prompt_id, prompt_id)
    assert await store.get_meta(prompt_id) == prompt_id
    await store.delete_history([prompt_id])
    assert await store.get(prompt_id) is None


# Settled jobs


async def test_a_settled_job_has_entry_and_summary_and_no_payload(store: Store) -> None:
    await store.insert(make_job("p"), PAYLOAD)
    job, summary = ended(make_job("p"), JobState.FAILED), make_summary("p", status="failed", workflow_id="w")
    await store.settle(job, b'{"a": 1}', summary)
    assert await store.get("p") == job
    assert await store.history_entry("p") == b'{"a": 1}'
    assert await store.summary("p") == summary
    assert await store.payloads(["p"]) == {}
    assert await store.unfinished() == []


async def test_a_large_entry_comes_back_whole(store: Store) -> None:
    entry = b'{"x": "' + bytes(range(32, 127)) * 50_000 + b'"}'
    await store.settle(ended(make_job("p")), entry, make_summary("p"))
    assert await store.history_entry("p") == entry
    assert await store.history(max_items=1, offset=0) == [("p", entry)]


async def test_a_job_may_end_that_was_never_inserted(store: Store) -> None:
    await settle(store, "p")
    assert await store.get("p") == ended(make_job("p"))


async def test_settling_again_takes_the_place_of_the_first_end(store: Store) -> None:
    for prompt_id in ("p", "q"):
        await settle(store, prompt_id)
    again = ended(make_job("p"), JobState.FAILED)
    await store.settle(again, b'{"again": 1}', make_summary("p", status="failed"))
    assert await store.get("p") == again
    assert await store.history(max_items=None, offset=0) == [("q", entry_of("q")), ("p", b'{"again": 1}')]
    assert (await page(store))[1] == 2


async def test_a_cancelled_job_is_known_without_being_history(store: Store) -> None:
    await store.insert(make_job("p"), PAYLOAD)
    cancelled = ended(make_job("p"), JobState.CANCELLED)
    await store.cancel(cancelled)
    assert await store.get("p") == cancelled
    assert await store.unfinished() == []
    assert await store.payloads(["p"]) == {}
    assert await store.history_entry("p") is None
    assert await store.summary("p") is None
    assert await remembered(store) == []


async def test_a_cancellation_after_the_end_wins_as_the_latest(store: Store) -> None:
    await settle(store, "p")
    await store.cancel(ended(make_job("p"), JobState.CANCELLED))
    assert await remembered(store) == []
    assert await listed(store) == []


async def test_an_id_may_come_again_after_its_end(store: Store) -> None:
    await settle(store, "p")
    await store.insert(make_job("p", 8.0), PAYLOAD)
    assert await store.unfinished() == [make_job("p", 8.0)]
    assert await remembered(store) == []
    assert await store.summary("p") is None
    await settle(store, "p")
    await store.clear_history()
    await store.insert(make_job("p", 9.0), PAYLOAD)
    assert await store.unfinished() == [make_job("p", 9.0)]


async def test_the_oldest_that_ended_are_forgotten_beyond_the_retention(store: Store) -> None:
    await store.insert(make_job("waiting"), PAYLOAD)
    for prompt_id in "abcdefgh":
        await settle(store, prompt_id)
    assert await remembered(store) == list("defgh")
    assert await listed(store) == list("defgh")
    assert await store.get("c") is None
    assert await store.history_entry("c") is None
    assert await store.get("waiting") is not None


async def test_cancelled_jobs_count_for_the_retention(store: Store) -> None:
    for prompt_id in "abc":
        await settle(store, prompt_id)
    for prompt_id in "xyz":
        await store.cancel(ended(make_job(prompt_id), JobState.CANCELLED))
    assert await remembered(store) == list("bc")
    for prompt_id in "defgh":
        await settle(store, prompt_id)
    assert await store.get("z") is None


async def test_deleting_history_forgets_what_ended_and_nothing_else(store: Store) -> None:
    await store.insert(make_job("waiting"), PAYLOAD)
    for prompt_id in "abc":
        await settle(store, prompt_id)
    await store.delete_history(["a", "waiting", "?", "a", "c"])
    assert await remembered(store) == ["b"]
    assert await listed(store) == ["b"]
    assert await store.get("a") is None
    assert await store.get("waiting") == make_job("waiting")
    assert await store.payloads(["waiting"]) == {"waiting": PAYLOAD}


async def test_clearing_history_forgets_all_that_ended(store: Store) -> None:
    await store.insert(make_job("waiting"), PAYLOAD)
    await settle(store, "a")
    await store.cancel(ended(make_job("b"), JobState.CANCELLED))
    await store.clear_history()
    assert await remembered(store) == []
    assert await page(store) == ([], 0)
    assert await store.get("a") is None
    assert await store.get("b") is None
    assert [job.prompt_id for job in await store.unfinished()] == ["waiting"]
    assert await store.payloads(["waiting"]) == {"waiting": PAYLOAD}


@pytest.mark.parametrize(
    ("max_items", "offset", "expected"),
    [
        (None, -1, "abcde"),
        (None, 0, "abcde"),
        (None, 3, "de"),
        (2, 0, "ab"),
        (2, 1, "bc"),
        (2, 4, "e"),
        (2, 5, ""),
        (2, -1, "de"),
        (9, -1, "abcde"),
        (0, -1, ""),
        (0, 0, ""),
        (-3, 0, ""),
        (10**30, 0, "abcde"),
        (1, 10**30, ""),
    ],
)
async def test_history_is_cut_as_asked(store: Store, max_items: int | None, offset: int, expected: str) -> None:
    for prompt_id in "abcde":
        await settle(store, prompt_id)
    assert [prompt_id for prompt_id, _ in await store.history(max_items=max_items, offset=offset)] == list(expected)


async def test_jobs_are_listed_in_either_order_and_equals_as_they_ended(store: Store) -> None:
    for prompt_id, created_ms, duration_ms in (("a", 5, 1), ("b", 3, 9), ("c", 5, 9), ("d", 4, 0)):
        await settle(store, prompt_id, created_ms=created_ms, duration_ms=duration_ms)
    assert await listed(store) == list("bdac")
    assert await listed(store, descending=True) == list("acdb")
    assert await listed(store, sort_by="execution_duration") == list("dabc")
    assert await listed(store, sort_by="execution_duration", descending=True) == list("bcad")


async def test_jobs_are_listed_by_page_status_and_workflow(store: Store) -> None:
    await settle(store, "a", created_ms=1, workflow_id="w")
    await settle(store, "b", created_ms=2, workflow_id="w", status="failed")
    await settle(store, "c", created_ms=3, status="cancelled")
    await settle(store, "d", created_ms=4, workflow_id="w")
    assert await listed(store, workflow_id="w") == list("abd")
    assert await listed(store, statuses=frozenset({"failed", "cancelled"})) == list("bc")
    assert await listed(store, statuses=frozenset({"completed"}), workflow_id="w") == list("ad")
    found, total = await page(store, limit=2, offset=1)
    assert ([summary.prompt_id for summary in found], total) == (list("bc"), 4)
    assert await page(store, workflow_id="other") == ([], 0)
    assert await page(store, statuses=frozenset()) == ([], 0)
    assert await page(store, limit=10**30, offset=10**30) == ([], 4)


# Files


async def test_a_file_is_known_by_its_whole_name(store: Store) -> None:
    record = FileRecord(FileRef("x.png", "sub", "output"), "d1", 123)
    await store.remember_file(record)
    assert await store.file(record.ref) == record
    assert await store.file(FileRef("x.png", "sub", "input")) is None
    assert await store.file(FileRef("x.png", "", "output")) is None


async def test_a_new_record_keeps_the_copies_of_the_one_before(store: Store) -> None:
    ref = FileRef("\ud800.png")
    await store.remember_file(FileRecord(ref, "d1", 1))
    await store.remember_copy(ref, A, "d1")
    await store.remember_file(FileRecord(ref, "d2"))
    assert await store.file(ref) == FileRecord(ref, "d2", None)
    assert await store.copies(ref) == {A: "d1"}


async def test_a_copy_may_be_known_of_a_file_without_a_record(store: Store) -> None:
    ref = FileRef("x.png")
    await store.remember_copy(ref, A, "d1")
    await store.remember_copy(ref, B, "d1")
    await store.remember_copy(ref, A, "d2")
    assert await store.file(ref) is None
    assert await store.copies(ref) == {A: "d2", B: "d1"}
    assert await store.copies(FileRef("y.png")) == {}


async def test_the_files_not_mentioned_for_longest_are_forgotten_with_their_copies(store: Store) -> None:
    old, kept = FileRef("old"), FileRef("kept")
    for ref in (old, kept):
        await store.remember_file(FileRecord(ref, "d"))
        await store.remember_copy(ref, A, "d")
    for index in range(500):
        await asyncio.gather(store.remember_copy(FileRef(f"{index}"), A, "d"), store.remember_copy(kept, B, "d"))
    assert await store.copies(old) == {}
    assert await store.file(old) is None
    assert await store.copies(kept) == {A: "d", B: "d"}
