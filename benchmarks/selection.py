"""What choosing costs: backends for a job, among eight and among a thousand, and a round with 100,000 waiting jobs.

    python benchmarks/selection.py [--repeats N]

`choose` is the question to which backend a job would go if it were alone: who can run it, who has room, who comes
first, and whether the client's last one is among equals. `place` is the whole way of a job: it is enqueued, given its
backend (under model_affinity by what is in memory), started and finished, with all that is learned from it. A round is
what happens when a backend is done: one job ends, and all that can go out now goes. Medians over the repeats; a round's
is over all rounds.
"""

import argparse
import statistics
import time
from collections.abc import Callable

from comfyproxy.core.jobs import BackendId
from comfyproxy.core.needs import Needs
from comfyproxy.core.scheduling.scheduler import Scheduler
from comfyproxy.core.scheduling.strategies import NAMES, make_strategy
from comfyproxy.core.scheduling.types import BackendSpec, Request

FEW, MANY = 8, 1_000
WAITING, CLIENTS, MODELS, KINDS, ROUNDS = 100_000, 1_000, 200, 20, 300
NEEDS = [
    Needs(classes=frozenset({"CheckpointLoaderSimple", "KSampler"}), models=frozenset({f"model-{index}.safetensors"}))
    for index in range(MODELS)
]


def fleet(strategy: str, backends: int) -> Scheduler:
    """Return a scheduler with ready backends that have nothing to do."""
    scheduler = Scheduler(make_strategy(strategy))
    for index in range(backends):
        name = BackendId(f"gpu-{index}")
        scheduler.set_backend(BackendSpec(backend=name, max_concurrent=2))
        scheduler.set_ready(name, True)
    return scheduler


def request(index: int) -> Request:
    """Return a job of one of many clients, models and kinds."""
    return Request(
        prompt_id=str(index),
        client=f"client-{index % CLIENTS}",
        number=float(index),
        needs=NEEDS[index * 7919 % MODELS],
        kind=f"kind-{index % KINDS}",
    )


def per_second(work: Callable[[int], object], count: int, repeats: int) -> float:
    """Return how often something can be done in a second of this process's time."""
    rates = []
    for _ in range(repeats):
        began = time.process_time()
        for index in range(count):
            work(index)
        rates.append(count / (time.process_time() - began))
    return statistics.median(rates)


def choosing(strategy: str, backends: int, repeats: int) -> tuple[float, float]:
    """Return choices and whole placements per second."""
    scheduler = fleet(strategy, backends)
    jobs = [request(index) for index in range(2_000)]
    choices = per_second(lambda index: scheduler.choose(jobs[index % 2_000]), 50_000, repeats)
    clock = iter(range(10**9))

    def place(index: int) -> None:
        now_s = float(next(clock))
        scheduler.enqueue(jobs[index], now_s)
        while (assignment := scheduler.next(now_s)) is not None:
            scheduler.started(assignment.prompt_id, now_s)
            scheduler.finished(assignment.prompt_id, now_s + 1.0)

    return choices, per_second(place, 2_000, repeats)


def rounds(strategy: str) -> list[float]:
    """Return how long rounds take with many jobs waiting, in milliseconds, shortest first."""
    scheduler = fleet(strategy, FEW)
    for index in range(WAITING):
        scheduler.enqueue(request(index), 0.0)
    running: list[str] = []
    took = []
    for now in range(ROUNDS):
        began = time.process_time()
        if running:
            scheduler.finished(running.pop(0), float(now))
        while (assignment := scheduler.next(float(now))) is not None:
            scheduler.started(assignment.prompt_id, float(now))
            running.append(assignment.prompt_id)
        took.append((time.process_time() - began) * 1e3)
    return sorted(took)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="of each measurement (default: 5)")
    repeats = parser.parse_args().repeats
    print(f"{'':16}{f'choose, {FEW}':>14}{f'{MANY:,}':>14}{'cost':>8}{f'place, {FEW}':>14}{f'{MANY:,}':>14}{'cost':>8}")
    for name in NAMES:
        (choose_few, place_few), (choose_many, place_many) = (choosing(name, n, repeats) for n in (FEW, MANY))
        print(
            f"{name:16}{choose_few:>12,.0f}/s{choose_many:>12,.0f}/s{choose_few / choose_many:>7.2f}x"
            f"{place_few:>12,.0f}/s{place_many:>12,.0f}/s{place_few / place_many:>7.2f}x"
        )
    print(f"\nA round with {WAITING:,} waiting jobs of {CLIENTS:,} clients and {MODELS} models, {FEW} backends, in ms:")
    for name in NAMES:
        took = rounds(name)
        print(f"{name:16} median {statistics.median(took):6.3f}   99 % {took[len(took) * 99 // 100]:6.3f}")


if __name__ == "__main__":
    main()
