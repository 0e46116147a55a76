"""Queue numbers: never twice, whatever becomes of the disk."""

from pathlib import Path

import pytest

from comfyproxy.core.ports import StoreUnavailable
from comfyproxy.store import numbers as module
from comfyproxy.store.numbers import BLOCK, Numbers
from comfyproxy.store.sqlite import SqliteStore


class Reserve:
    """A disk that answers at once, fails at once, or hangs."""

    def __init__(self, mood: str = "well") -> None:
        self.mood = mood
        self.durable = BLOCK
        self.asked = 0
        self.numbers = Numbers(Path("jobs.db"), start=0, limit=BLOCK, extend=self.extend)

    def extend(self, limit: int) -> None:
        self.asked += 1
        if self.mood == "well":
            self.durable = limit
            self.numbers.extended(limit)
        elif self.mood == "broken":
            self.numbers.failed()

    def take(self, count: int) -> list[int]:
        taken = []
        for _ in range(count):
            taken.append(self.numbers.take())
            assert taken[-1] < self.durable
        return taken


def test_numbers_stay_below_what_is_durable() -> None:
    reserve = Reserve()
    assert reserve.take(5 * BLOCK) == list(range(5 * BLOCK))
    assert reserve.asked < 7


def test_a_broken_disk_is_asked_again_until_it_is_well() -> None:
    reserve = Reserve("broken")
    reserve.take(BLOCK)
    with pytest.raises(StoreUnavailable, match=r"jobs\.db cannot reserve"):
        reserve.take(1)
    reserve.mood = "well"
    assert reserve.take(2) == [BLOCK, BLOCK + 1]


def test_while_the_disk_hangs_only_one_caller_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    reserve = Reserve("hangs")
    reserve.take(BLOCK)
    monkeypatch.setattr(module, "_WAIT_S", 0.0)
    with pytest.raises(StoreUnavailable):
        reserve.take(1)
    monkeypatch.setattr(module, "_WAIT_S", 3600.0)
    with pytest.raises(StoreUnavailable):  # at once
        reserve.take(1)
    assert reserve.asked == 1
    reserve.durable = 2 * BLOCK
    reserve.numbers.extended(2 * BLOCK)
    assert reserve.take(1) == [BLOCK]


async def test_a_burst_that_outruns_the_disk_gets_its_numbers(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "jobs.db")
    await store.open()
    assert [store.next_number() for _ in range(10 * BLOCK)] == list(range(10 * BLOCK))
    await store.close()


async def test_a_closed_store_gives_no_numbers(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "jobs.db")
    with pytest.raises(StoreUnavailable, match="not open"):
        store.next_number()
