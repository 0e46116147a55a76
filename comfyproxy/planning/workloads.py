"""Made-up traces: the same for the same name, seed and fleet's capacity.

    batch        everything is there at once
    interactive  people in sessions, who look at each picture before they queue the next
    mixed        both at the same time
    bursts       little to do, then very much at once
    heavy_tail   jobs of seconds to ten minutes, as pictures and videos in one queue

Each with one model, with few (4, equally popular) or with many (24, of which a few are asked for most): `batch-few`,
`bursts-many`. With one there is nothing to gain from knowing the models, only something to lose. About 2,000 jobs on a
fleet of capacity 8; on a larger one more of them, so that it is as busy.
"""

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from comfyproxy.planning.fleet import FleetModel
from comfyproxy.planning.trace import TraceJob

HOUR_S = 3600.0

# Kinds of workflow: run_s at speed 1, and how often each is wanted.
_KINDS = {"draft": (5.0, 3), "portrait": (8.0, 4), "landscape": (12.0, 2), "hires": (20.0, 1)}
_MEAN_RUN_S = sum(run_s * share for run_s, share in _KINDS.values()) / sum(share for _, share in _KINDS.values())
_NOISE = 0.1  # the standard deviation of the logarithm of jobs of one kind


@dataclass(frozen=True)
class Workload:
    """A trace, and the models it needs."""

    name: str
    jobs: Sequence[TraceJob]
    models: Mapping[str, FleetModel]


class _Maker:
    """Draws what all workloads are made of."""

    def __init__(self, random_: random.Random, capacity: float, count: int, skew: float) -> None:
        self.random, self.capacity = random_, capacity
        self.names = [f"model-{index:02}" for index in range(1, count + 1)]
        self._popularity = [1.0 / rank**skew for rank in range(1, count + 1)]  # Zipf's law
        self.models = {name: FleetModel(load_s=round(random_.uniform(10.0, 40.0), 1)) for name in self.names}

    def model(self) -> str:
        return self.random.choices(self.names, self._popularity)[0]

    def favourites(self, most: int) -> list[str]:
        """Return the models that one client works with."""
        return sorted({self.model() for _ in range(self.random.randint(1, most))})

    def job(self, at_s: float, client: str, model: str) -> TraceJob:
        kind = self.random.choices(list(_KINDS), [share for _, share in _KINDS.values()])[0]
        run_s = _KINDS[kind][0] * self.random.lognormvariate(0.0, _NOISE)
        return TraceJob(at_s=at_s, client=client, model=model, kind=kind, run_s=run_s)

    def times(self, rate: float, until_s: float, from_s: float = 0.0) -> Iterator[float]:
        """Yield times as independent people come, `rate` of them in a second."""
        at_s = from_s + self.random.expovariate(rate)
        while at_s < until_s:
            yield at_s
            at_s += self.random.expovariate(rate)


def _submission(maker: _Maker, at_s: float, client: str, count: int, most_models: int) -> Iterator[TraceJob]:
    """Yield what a script queues at once: its models in turn, as loops over prompts and models do."""
    models = maker.favourites(most_models)
    for _ in range(count):
        yield maker.job(at_s, client, maker.random.choice(models))


def _batch(maker: _Maker) -> Iterator[TraceJob]:
    sizes = (0.3, 0.2, 0.15, 0.1, 0.1, 0.05, 0.05, 0.05)
    for index, size in enumerate(sizes, start=1):
        count = round(250 * maker.capacity * size)
        yield from _submission(maker, 0.0, f"batch-{index}", count, most_models=6)


def _sessions(maker: _Maker, utilisation: float) -> Iterator[TraceJob]:
    prompts, think_s, early_s = 15, 30.0, 600.0
    # Some are in the middle of it when the trace begins; what they did before is not in it.
    for index, at_s in enumerate(
        maker.times(utilisation * maker.capacity / (prompts * _MEAN_RUN_S), HOUR_S, -early_s), start=1
    ):
        model = maker.model()
        for _ in range(1 + int(maker.random.expovariate(1.0 / (prompts - 0.5)))):
            chosen = maker.model() if maker.random.random() < 0.1 else model
            job = maker.job(max(at_s, 0.0), f"user-{index}", chosen)
            if 0.0 <= at_s < HOUR_S:
                yield job
            at_s += job.run_s + think_s * maker.random.lognormvariate(-0.32, 0.8)


def _interactive(maker: _Maker) -> Iterator[TraceJob]:
    return _sessions(maker, 0.65)


def _mixed(maker: _Maker) -> Iterator[TraceJob]:
    yield from _sessions(maker, 0.35)
    for client, at_s in (("batch-1", 0.0), ("batch-2", 900.0)):
        yield from _submission(maker, at_s, client, round(60 * maker.capacity), most_models=6)


def _bursts(maker: _Maker) -> Iterator[TraceJob]:
    yield from _sessions(maker, 0.12)
    for burst in range(6):
        for client in range(4):
            at_s = burst * 600.0 + maker.random.uniform(60.0, 80.0)
            count = round(maker.random.uniform(0.5, 1.5) * 7.5 * maker.capacity)
            yield from _submission(maker, at_s, f"burst-{burst + 1}-{client + 1}", count, most_models=4)


def _heavy_tail(maker: _Maker) -> Iterator[TraceJob]:
    low, high, alpha = 2.0, 600.0, 1.1  # a bounded Pareto distribution
    cut = 1.0 - (low / high) ** alpha
    mean = low**alpha / cut * alpha / (alpha - 1.0) * (low ** (1.0 - alpha) - high ** (1.0 - alpha))
    clients = [(f"client-{index}", maker.favourites(4)) for index in range(1, 13)]
    for at_s in maker.times(0.65 * maker.capacity / mean, HOUR_S):
        client, models = maker.random.choice(clients)
        run_s = low / (1.0 - maker.random.random() * cut) ** (1.0 / alpha)
        # Resolution and length tell how long a job takes, about: half to double is one kind.
        kind = f"frames-{2 ** int(math.log2(run_s))}"
        yield TraceJob(at_s=at_s, client=client, model=maker.random.choice(models), kind=kind, run_s=run_s)


_MAKERS: Mapping[str, Callable[[_Maker], Iterator[TraceJob]]] = {
    "batch": _batch,
    "interactive": _interactive,
    "mixed": _mixed,
    "bursts": _bursts,
    "heavy_tail": _heavy_tail,
}
_MODELS = {"one": (1, 0.0), "few": (4, 0.0), "many": (24, 1.0)}
NAMES = tuple(f"{shape}-{models}" for shape in _MAKERS for models in _MODELS)


def make_workload(name: str, *, seed: int, capacity: float) -> Workload:
    """Return a workload of NAMES for a fleet of this capacity (`Fleet.capacity`); its jobs are in order of time."""
    shape, _, models = name.rpartition("-")
    count, skew = _MODELS[models]
    maker = _Maker(random.Random(f"{name} {seed}"), capacity, count, skew)
    jobs = sorted(_MAKERS[shape](maker), key=lambda job: job.at_s)
    return Workload(name, jobs, maker.models)
