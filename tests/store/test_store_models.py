"""Whatever is done in whatever order, the database says what the simple store says."""

import asyncio
import math
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_support import ALL_STATUSES, Store, ended, make_job, make_summary

from comfyproxy.core.jobs import JobState, Payload
from comfyproxy.store.memory import MemoryStore
from comfyproxy.store.sqlite import SqliteStore

MAX_HISTORY = 4
Step = Callable[[Store], Coroutine[Any, Any, object]]

ids = st.sampled_from(["a", "b", "c", "d", "\ud800", ""])
numbers = st.sampled_from([0.0, 1.0, 1.0, -2.0, math.inf])
times = st.integers(0, 3)


def insert(prompt_id: str, number: float) -> Step:
    return lambda store: store.insert(make_job(prompt_id, number), Payload(graph=str(number).encode()))


def update(prompt_id: str, number: float) -> Step:
    return lambda store: store.update(make_job(prompt_id, number, state=JobState.ACCEPTED))


def settle(prompt_id: str, status: str, created_ms: int, duration_ms: int) -> Step:
    summary = make_summary(prompt_id, status=status, created_ms=created_ms, duration_ms=duration_ms)
    return lambda store: store.settle(ended(make_job(prompt_id)), b"%d" % created_ms, summary)


def cancel(prompt_id: str) -> Step:
    return lambda store: store.cancel(ended(make_job(prompt_id), JobState.CANCELLED))


def discard(prompt_id: str) -> Step:
    return lambda store: store.discard(prompt_id)


def delete(prompt_ids: Sequence[str]) -> Step:
    return lambda store: store.delete_history(prompt_ids)


def clear() -> Step:
    return lambda store: store.clear_history()


steps = st.one_of(
    st.builds(insert, ids, numbers),
    st.builds(update, ids, numbers),
    st.builds(settle, ids, st.sampled_from(sorted(ALL_STATUSES)), times, times),
    st.builds(settle, ids, st.sampled_from(sorted(ALL_STATUSES)), times, times),
    st.builds(cancel, ids),
    st.builds(discard, ids),
    st.builds(delete, st.lists(ids, max_size=3)),
    st.builds(clear),
)


async def told(store: Store) -> list[object]:
    """Return all that a store says about jobs."""
    said: list[object] = [await store.unfinished()]
    for prompt_id in ("a", "b", "c", "d", "\ud800", ""):
        said += [await store.get(prompt_id), await store.history_entry(prompt_id), await store.summary(prompt_id)]
        said.append(await store.payloads([prompt_id]))
    said += [await store.history(max_items=count, offset=offset) for count in (None, 2) for offset in (-1, 0, 1)]
    for sort_by in ("created_at", "execution_duration"):
        for descending in (True, False):
            for statuses in (ALL_STATUSES, frozenset({"failed"})):
                page = await store.summaries(
                    statuses=statuses, workflow_id=None, sort_by=sort_by, descending=descending, limit=2, offset=1
                )
                said.append(page)
    return said


async def compare(done: Sequence[Step], path: Path) -> None:
    plain, store = (
        MemoryStore(max_history=MAX_HISTORY),
        SqliteStore(path, max_history=MAX_HISTORY, synchronous="normal"),
    )
    await store.open()
    try:
        for step in done:
            await step(plain)
        # All at once: the order of the calls must be the order of the changes.
        await asyncio.gather(*(step(store) for step in done))
        assert await told(store) == await told(plain)
    finally:
        await store.close()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(steps, max_size=30))
def test_both_stores_say_the_same(done: list[Step]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(compare(done, Path(folder) / "jobs.db"))
