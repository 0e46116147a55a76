"""Answers of backends as they are kept: what many of them say alike, once."""

import asyncio
import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TypeAlias, TypeVar
from weakref import WeakValueDictionary

from comfyproxy.core import catalog, merging
from comfyproxy.core.catalog import Catalog

T = TypeVar("T")

# What is longer is looked into by a thread.
LONG_BYTES = 64 * 1024


class Listing:
    """The JSON of an answer that is not taken apart until it is merged."""

    def __init__(self, body: bytes) -> None:
        self.body = body

    def __repr__(self) -> str:
        return f"<Listing {self.body[:60]!r}>"

    def has(self, name: str, path_index: int = 0) -> bool:
        """Whether a list of models has one of this name, whatever its extension, in this one of their folders."""
        return (stem(name), path_index) in self._stems

    @cached_property
    def _stems(self) -> frozenset[tuple[str, int]]:
        return frozenset((stem(name), index) for name, index in merging.listed(self.body))


Content: TypeAlias = Listing | Catalog


class Pool:
    """Gives equal answers as one object for as long as somebody holds it, so that each is taken apart once.

    Its methods may be called by two threads; at worst they keep one thing twice.
    """

    def __init__(self) -> None:
        self._listings: WeakValueDictionary[bytes, Listing] = WeakValueDictionary()
        self._catalogs: WeakValueDictionary[bytes, Catalog] = WeakValueDictionary()
        self._shared = catalog.Shared()

    def listing(self, body: bytes) -> Listing:
        """Return an answer to keep."""
        known = self._listings.get(body)
        if known is None:
            known = self._listings[body] = Listing(body)
        return known

    def catalog(self, object_info: bytes) -> Catalog:
        """Return what `/object_info` says. Raises msgspec.MsgspecError if it is none."""
        digest = hashlib.blake2b(object_info, digest_size=16).digest()
        known = self._catalogs.get(digest)
        if known is None:
            known = self._catalogs[digest] = catalog.parse(object_info, shared=self._shared)
        return known


class Worker:
    """One thread for all that takes long: with each more that computes, the event loop waits longer for its turn."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="catalogs")

    async def run(self, size: int, work: Callable[[], T]) -> T:
        """Return what the work returns, which is as long as `size` bytes are; short work is done at once."""
        if size < LONG_BYTES:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def close(self) -> None:
        """Do no more work."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def stem(name: str) -> str:
    """Return a model's name without its extension: a preview is asked for as `.webp`, whatever it belongs to."""
    head, dot, extension = name.rpartition(".")
    return head if dot and "/" not in extension and "\\" not in extension else name
