"""A request's body on its way out: taken once, watched, and never left half-read."""

import asyncio
from collections.abc import AsyncIterable, Callable
from typing import Self

import aiohttp


class Feed:
    """Hands a stream to aiohttp, and closes it when the request is over, whatever became of that.

    Attributes:
        failure: what the stream raised, if it did: then the backend is not to blame.
    """

    def __init__(
        self,
        source: AsyncIterable[bytes],
        *,
        length: int | None = None,
        on_progress: Callable[[bool], None] | None = None,
    ) -> None:
        """Take a stream.

        Args:
            length: in bytes, if it was announced; a shorter stream is an error, since the server would wait for ever.
            on_progress: told False when the stream is asked for its next chunk, True when the connection has it.
        """
        self._source = source
        self._chunks = source.__aiter__()
        self._missing = length
        self._on_progress = on_progress
        self._is_taken = self._is_closed = False
        self._reader: asyncio.Task[object] | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self.failure: Exception | None = None

    def __aiter__(self) -> Self:
        if self._is_taken:  # some versions of aiohttp repeat a PUT with whatever is left of its body
            raise aiohttp.ClientPayloadError("the request's body can be sent only once")
        self._is_taken = True
        return self

    async def __anext__(self) -> bytes:
        if self._is_closed:  # to end here would make half a body look whole
            raise aiohttp.ClientPayloadError("the request is over")
        self._tell(False)
        self._idle.clear()
        self._reader = asyncio.current_task()
        try:
            chunk = await self._chunks.__anext__()
        except StopAsyncIteration:
            if self._missing:
                self.failure = aiohttp.ClientPayloadError(f"the request's body is {self._missing} bytes short")
                raise self.failure from None
            self._tell(True)
            raise
        except Exception as exc:
            self.failure = exc
            raise
        finally:
            self._reader = None
            self._idle.set()
        if self._missing is not None:
            self._missing = max(0, self._missing - len(chunk))
        self._tell(True)
        return chunk

    async def close(self) -> None:
        """Close the stream; whoever still reads it is stopped."""
        self._is_closed = True
        if self._reader is not None:
            self._reader.cancel()
            await self._idle.wait()
        close = getattr(self._chunks, "aclose", None)
        if close is not None:
            await close()

    def _tell(self, has_chunk: bool) -> None:
        if self._on_progress is not None and not self._is_closed:
            self._on_progress(has_chunk)
