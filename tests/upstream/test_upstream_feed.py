"""A body on its way out, whoever reads it and however that ends."""

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest

from comfyproxy.upstream.feed import Feed


async def chunks(*values: bytes) -> AsyncIterator[bytes]:
    for value in values:
        yield value


async def test_whoever_still_reads_is_stopped_when_it_is_closed() -> None:
    begun, is_closed = asyncio.Event(), asyncio.Event()

    async def stuck() -> AsyncIterator[bytes]:
        try:
            begun.set()
            await asyncio.Event().wait()
            yield b""
        finally:
            is_closed.set()

    feed = Feed(stuck())
    reader = asyncio.ensure_future(anext(feed))
    await begun.wait()
    await feed.close()
    assert is_closed.is_set()
    with pytest.raises(asyncio.CancelledError):
        await reader


async def test_a_body_that_was_closed_does_not_look_as_if_it_had_ended() -> None:
    source = chunks(b"half", b"of it")
    feed = Feed(source)
    assert await anext(feed) == b"half"
    await feed.close()
    with pytest.raises(aiohttp.ClientPayloadError, match="the request is over"):
        await anext(feed)
    with pytest.raises(StopAsyncIteration):
        await anext(source)


async def test_what_is_left_of_a_body_is_not_sent_as_if_it_were_all() -> None:
    feed = Feed(chunks(b"once", b"only"))
    async for _ in feed:
        break
    with pytest.raises(aiohttp.ClientPayloadError, match="only once"):
        aiter(feed)


async def test_progress_is_told_of_waiting_and_of_sending() -> None:
    told: list[bool] = []
    feed = Feed(chunks(b"a", b"b"), on_progress=told.append)
    assert [chunk async for chunk in feed] == [b"a", b"b"]
    assert told == [False, True] * 3


async def test_a_body_longer_than_announced_is_left_to_the_sender_to_cut() -> None:
    feed = Feed(chunks(b"abc", b"def"), length=4)
    assert [chunk async for chunk in feed] == [b"abc", b"def"]
    assert feed.failure is None


async def test_a_stream_that_cannot_be_closed_needs_no_closing() -> None:
    class Once:
        def __aiter__(self) -> "Once":
            return self

        async def __anext__(self) -> bytes:
            raise StopAsyncIteration

    await Feed(Once()).close()
