"""The threads that talk to the database: one writes, in groups; others read."""

import asyncio
import contextlib
import queue
import sqlite3
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, cast

from comfyproxy.store.database import is_busy, unavailable

T = TypeVar("T")

Connect = Callable[[], sqlite3.Connection]


@dataclass(slots=True)
class Call(Generic[T]):
    """Something to do with the database, and who is told of its end: a waiter in its loop, or `then` in the thread."""

    work: Callable[[sqlite3.Connection], T]
    waiter: asyncio.Future[T] | None = None
    then: Callable[[BaseException | None], None] | None = None
    result: T | None = None
    error: BaseException | None = None


class Worker(ABC):
    """A thread with a connection of its own, which is given up when it fails, and made anew when it is needed."""

    group: ClassVar[int]  # calls made together at most

    def __init__(self, name: str, path: Path, connect: Connect) -> None:
        self._path, self._connect = path, connect
        self._calls: queue.SimpleQueue[Call[Any] | None] = queue.SimpleQueue()
        self._connection: sqlite3.Connection | None = None
        # A daemon: whoever forgets to close must not hang at exit. Nobody was told that the rest is written.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, call: Call[Any]) -> None:
        """Have a call made, after all that were put before."""
        self._calls.put(call)

    async def do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Have something done and return its result.

        It is queued before anything is awaited, and done also if the waiter is cancelled. Raises StoreUnavailable
        for errors of the database, else what `work` raises.
        """
        waiter: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._calls.put(Call(work, waiter))
        return await waiter

    async def stop(self) -> None:
        """Do what was put, and end. To be called once, with nothing put after it."""
        self._calls.put(None)
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        # At once: on a full disk, no first connection can be made to a write-ahead log.
        with contextlib.suppress(sqlite3.Error, OSError):
            self._connected()
        more = True
        while more:
            calls = [self._calls.get()]
            with contextlib.suppress(queue.Empty):
                while calls[-1] is not None and len(calls) < self.group:
                    calls.append(self._calls.get_nowait())
            more = calls[-1] is not None
            todo = [call for call in calls if call is not None]
            if todo:
                try:
                    self._do(todo)
                except Exception as exc:  # a bug of ours: those who wait must hear of it
                    self._recover(exc)
                    for call in todo:
                        call.error = exc
                _tell(todo)
        self._drop()

    @abstractmethod
    def _do(self, calls: Sequence[Call[Any]]) -> None:
        """Make the calls, and note the result or the error of each."""

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = self._connect()
        return self._connection

    def _recover(self, error: BaseException) -> None:
        """End the transaction; after a failure of the disk begin anew with another connection."""
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            if not is_busy(error):
                self._drop()

    def _drop(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _translate(self, error: Exception) -> Exception:
        return unavailable(self._path, error) if isinstance(error, (sqlite3.Error, OSError)) else error


class Writer(Worker):
    """Makes all calls that wait in one transaction, so that they share one wait for the disk."""

    group = 1000

    def __init__(self, name: str, path: Path, connect: Connect) -> None:
        super().__init__(name, path, connect)
        self.commits = 0

    def _do(self, calls: Sequence[Call[Any]]) -> None:
        try:
            self._commit(calls)
        except (sqlite3.Error, OSError) as exc:
            self._recover(exc)
            if len(calls) == 1 or is_busy(exc):  # busy: each would wait as long again
                for call in calls:
                    call.error = self._translate(exc)
                return
            # A full disk may have room for all but one.
            for call in calls:
                self._do([call])

    def _commit(self, calls: Sequence[Call[Any]]) -> None:
        """Commit the calls that succeed. Raises sqlite3.Error or OSError if none of them is committed."""
        db = self._connected()
        db.execute("BEGIN IMMEDIATE")
        for call in calls:
            call.result = call.error = None
            db.execute("SAVEPOINT call")
            try:
                call.result = call.work(db)
            except Exception as exc:
                if not db.in_transaction:  # SQLite gave up the others with it
                    raise
                call.error = self._translate(exc)
                db.execute("ROLLBACK TO call")
            db.execute("RELEASE call")
        db.execute("COMMIT")
        self.commits += 1


class Reader(Worker):
    """Makes one call after the other, each in a view of the database that does not change meanwhile."""

    group = 1

    def _do(self, calls: Sequence[Call[Any]]) -> None:
        (call,) = calls
        try:
            db = self._connected()
            db.execute("BEGIN")
            call.result = call.work(db)
            db.execute("ROLLBACK")
        except (sqlite3.Error, OSError) as exc:
            self._recover(exc)
            call.error = self._translate(exc)


def _tell(calls: Sequence[Call[Any]]) -> None:
    """Tell those who wait; each loop is woken once."""
    waiting: dict[asyncio.AbstractEventLoop, list[Call[Any]]] = {}
    for call in calls:
        if call.then is not None:
            call.then(call.error)
        if call.waiter is not None:
            waiting.setdefault(call.waiter.get_loop(), []).append(call)
    for loop, told in waiting.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_resolve, told)


def _resolve(calls: Sequence[Call[Any]]) -> None:
    for call in calls:
        waiter = cast("asyncio.Future[Any]", call.waiter)
        if waiter.done():  # cancelled
            continue
        if call.error is None:
            waiter.set_result(call.result)
        else:
            waiter.set_exception(call.error)
