"""The payloads of waiting jobs: in memory as far as they fit, else in the store."""

import pytest
from service_support import FailingStore, make_job

from comfyproxy.core.jobs import Payload
from comfyproxy.core.ports import StoreUnavailable
from comfyproxy.service.payloads import PayloadCache, PayloadLost


def payload(size: int) -> Payload:
    return Payload(graph=b"x" * size, extra_data=b"", rest=b"")


async def kept(*prompt_ids: str, size: int = 10) -> FailingStore:
    store = FailingStore()
    for prompt_id in prompt_ids:
        await store.insert(make_job(prompt_id), payload(size))
    store.changes.clear()
    return store


async def test_what_is_remembered_costs_no_look_into_the_store() -> None:
    store = await kept("p")
    cache = PayloadCache(store)
    assert await cache.get("p") == await cache.get("p") == payload(10)
    assert len(store.changes) == 1
    cache.forget("p")
    cache.forget("p")
    await cache.get("p")
    assert len(store.changes) == 2


async def test_memory_is_bounded_and_the_oldest_make_room() -> None:
    store = await kept("p", "q", "r")
    cache = PayloadCache(store, max_bytes=25)
    for prompt_id in "pqr":
        cache.remember(prompt_id, payload(10))
    for prompt_id in "qr":
        await cache.get(prompt_id)
    assert store.changes == []
    await cache.get("p")
    assert [prompt_id for _, prompt_id, _ in store.changes] == ["p"]


async def test_remembering_again_takes_no_more_room() -> None:
    store = await kept("p", "q")
    cache = PayloadCache(store, max_bytes=25)
    cache.remember("p", payload(10))
    for _ in range(5):
        cache.remember("q", payload(10))
    await cache.get("p")
    assert store.changes == []


async def test_one_that_is_too_big_for_the_bound_is_still_the_newest() -> None:
    store = await kept("p", "q")
    cache = PayloadCache(store, max_bytes=25)
    cache.remember("q", payload(10))
    cache.remember("p", payload(100))
    await cache.get("p")
    assert store.changes == []
    await cache.get("q")
    assert len(store.changes) == 1


async def test_what_the_store_has_lost_is_lost() -> None:
    store = await kept()
    with pytest.raises(PayloadLost):
        await PayloadCache(store).get("p")


async def test_a_store_that_cannot_be_read_is_not_one_that_has_lost() -> None:
    store = await kept("p")
    store.fails["payloads"] = 1
    cache = PayloadCache(store)
    with pytest.raises(StoreUnavailable):
        await cache.get("p")
    assert await cache.get("p") == payload(10)
