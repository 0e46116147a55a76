"""How many jobs per second each store takes, by the number of writers that wait at the same time.

    python benchmarks/store.py [--seconds S] [--rounds N] [--dir DIR]

The stores take turns within every round, so that what else the machine does meets them alike. Figures are medians over
the rounds; the disk decides them, so put DIR where the proxy's data directory will be.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from comfyproxy.core.jobs import Job, Payload
from comfyproxy.core.ports import JobStore
from comfyproxy.store.memory import MemoryStore
from comfyproxy.store.sqlite import SqliteStore

WRITERS = (1, 10, 100)
PAYLOAD = Payload(graph=b'{"3": {"class_type": "KSampler", "inputs": {}}}' + b" " * 4000)  # a common graph's size


async def inserts_per_s(store: JobStore, *, writers: int, seconds: float) -> tuple[float, float]:
    """Return how many jobs per second were written, and how many in each commit."""
    done = 0
    await store.open()
    end = time.perf_counter() + seconds

    async def write(who: int) -> None:
        nonlocal done
        index = 0
        while time.perf_counter() < end:
            job = Job(
                prompt_id=f"{who}-{index}",
                number=float(store.next_number()),
                client_id="bench",
                fingerprint="0" * 64,
                created_s=time.time(),
            )
            await store.insert(job, PAYLOAD)
            done += 1
            index += 1

    started = time.perf_counter()
    await asyncio.gather(*(write(who) for who in range(writers)))
    rate = done / (time.perf_counter() - started)
    per_commit = done / max(1, store.commits) if isinstance(store, SqliteStore) else 1.0
    await store.close()
    return rate, per_commit


def run(*, seconds: float, rounds: int, folder: Path) -> None:
    """Measure all, and print a table."""
    names = ("sqlite full", "sqlite normal", "memory")
    rates: dict[tuple[str, int], list[float]] = {(name, writers): [] for name in names for writers in WRITERS}
    groups: dict[tuple[str, int], list[float]] = {key: [] for key in rates}
    for _ in range(rounds):
        for writers in WRITERS:
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                makers: dict[str, Callable[[], JobStore]] = {
                    "sqlite full": lambda scratch=scratch: SqliteStore(Path(scratch) / "full.db"),  # type: ignore[misc]
                    "sqlite normal": lambda scratch=scratch: SqliteStore(  # type: ignore[misc]
                        Path(scratch) / "normal.db", synchronous="normal"
                    ),
                    "memory": MemoryStore,
                }
                for name in names:
                    rate, per_commit = asyncio.run(inserts_per_s(makers[name](), writers=writers, seconds=seconds))
                    rates[name, writers].append(rate)
                    groups[name, writers].append(per_commit)
    print(
        f"{'store':<14} {'writers':>7} {'inserts/s':>10} {'per commit':>10} {'x one writer':>12} {'x sqlite full':>13}"
    )
    for name in names:
        for writers in WRITERS:
            rate = statistics.median(rates[name, writers])
            alone = statistics.median(rates[name, 1])
            full = statistics.median(rates["sqlite full", writers])
            group = statistics.median(groups[name, writers])
            print(f"{name:<14} {writers:>7} {rate:>10.0f} {group:>10.1f} {rate / alone:>12.1f} {rate / full:>13.1f}")


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement (default: 1)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured (default: 5)")
    parser.add_argument("--dir", type=Path, default=Path(), help="where to put the databases (default: here)")
    arguments = parser.parse_args()
    run(seconds=arguments.seconds, rounds=arguments.rounds, folder=arguments.dir)


if __name__ == "__main__":
    main()
