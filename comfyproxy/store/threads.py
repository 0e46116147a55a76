"""What runs while an SQLite store is open: the writer, the readers, and the queue numbers that the writer reserves."""

import asyncio
import logging
from functools import partial
from pathlib import Path
from typing import Final

from comfyproxy.store import file_rows
from comfyproxy.store.numbers import BLOCK, Numbers
from comfyproxy.store.workers import Call, Connect, Reader, Writer

_log = logging.getLogger(__name__)

NUMBER: Final = "number"  # the counter that says which queue numbers are reserved


class Threads:
    """What runs while the store is open."""

    def __init__(self, path: Path, connect: Connect, start: int) -> None:
        self.writer = Writer("store-writer", path, connect)
        self.lookups = Reader("store-lookups", path, connect)
        self.lists = Reader("store-lists", path, connect)
        self.numbers = Numbers(path, start=start, limit=start + BLOCK, extend=self._reserve)

    def _reserve(self, limit: int) -> None:
        """Queue the reservation of the numbers below `limit`."""

        def then(error: BaseException | None) -> None:
            if error is None:
                self.numbers.extended(limit)
            else:
                _log.warning("queue numbers up to %d cannot be reserved: %s", limit, error)
                self.numbers.failed()

        self.writer.put(Call(partial(file_rows.set_counter, name=NUMBER, value=limit), then=then))

    async def stop(self) -> None:
        """Finish what was asked, and end."""
        await asyncio.gather(self.lookups.stop(), self.lists.stop())
        unused = self.numbers.unused
        self.writer.put(Call(partial(file_rows.set_counter, name=NUMBER, value=unused), then=self._log_failure))
        await self.writer.stop()

    @staticmethod
    def _log_failure(error: BaseException | None) -> None:
        if error is not None:
            _log.warning("unused queue numbers cannot be given back: %s", error)
