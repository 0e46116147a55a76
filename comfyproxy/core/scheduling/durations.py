"""How long things take, learned from what ran: prompts by kind and backend, and loading models.

Everything is an exponentially weighted mean. What was not seen on one backend is concluded from the others by speed,
and what was not seen at all from the mean of everything.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass

from comfyproxy.core.jobs import BackendId

Models = frozenset[str]

NEW = 0.25  # the share of the newest observation in a mean
FIRST_RUN_S = 10.0  # what a prompt is taken for before anything has run
FIRST_LOAD_S = 10.0
SHORTEST_S = 0.001
SURE_AFTER = 3  # runs of a kind
MAX_SPEED = 64.0
REMEMBERED = 50_000  # means of each sort


@dataclass(slots=True)
class _Mean:
    value: float
    seen: int = 1
    spread: float = 0.0  # the mean distance of values from it

    def fold(self, value: float) -> None:
        self.seen += 1
        share = max(NEW, 1 / self.seen)
        self.spread += share * (abs(value - self.value) - self.spread)
        self.value += share * (value - self.value)


class _Means(OrderedDict[tuple[object, ...], _Mean]):
    """Means by key; the ones that were not touched for longest are forgotten."""

    def fold(self, key: tuple[object, ...], value: float) -> None:
        mean = self.get(key)
        if mean is None:
            self[key] = _Mean(value)
            if len(self) > REMEMBERED:
                self.popitem(last=False)
        else:
            mean.fold(value)
            self.move_to_end(key)


class Durations:
    """What is known of times; all in seconds."""

    def __init__(self) -> None:
        self._runs = _Means()  # (kind, backend) -> with the models in memory
        self._kinds = _Means()  # (kind,) -> the same, on a backend of speed 1
        self._guesses = _Means()  # (kind,) -> for kinds that were only ever seen with loading
        self._loads = _Means()  # (models, backend) -> loading them
        self._models = _Means()  # (models,) -> the same, wherever
        self._run = _Mean(FIRST_RUN_S, 0)
        self._load = _Mean(FIRST_LOAD_S, 0)
        self._speeds: dict[BackendId, float] = {}
        self._sum = 0.0  # of the speeds

    def speed(self, backend: BackendId) -> float:
        """Return how fast a backend is against the others: 2.0 takes half the time."""
        return self._speeds.get(backend, 1.0)

    def relative_speed(self, backend: BackendId) -> float:
        """Return how fast a backend is against the mean of those that are known."""
        return self.speed(backend) * len(self._speeds) / self._sum if self._speeds else 1.0

    def run_s(self, kind: str, backend: BackendId) -> float:
        """Return how long a prompt is expected to run there with its models in memory."""
        if (mean := self._runs.get((kind, backend))) is not None:
            return mean.value
        return self.base_s(kind) / self.speed(backend)

    def spread_s(self, kind: str, backend: BackendId) -> float:
        """Return how far off `run_s` is, on average; infinity where too little was seen to know."""
        mean = self._kinds.get((kind,))
        return math.inf if mean is None or mean.seen < SURE_AFTER else mean.spread / self.speed(backend)

    def base_s(self, kind: str) -> float:
        """Return how long a prompt of this kind is expected to run on a backend of speed 1."""
        mean = self._kinds.get((kind,)) or self._guesses.get((kind,)) or self._run
        return mean.value

    def load_s(self, models: Models, backend: BackendId) -> float:
        """Return how long a backend is expected to load models that it does not hold."""
        if not models:
            return 0.0
        mean = self._loads.get((models, backend)) or self._models.get((models,)) or self._load
        return mean.value

    def observe(self, kind: str, models: Models, backend: BackendId, seconds: float, *, is_cold: bool) -> None:
        """Fold in a prompt that ran to its end.

        Args:
            seconds: from its start to its end.
            is_cold: its models had to be loaded first.
        """
        seconds = max(seconds, SHORTEST_S)
        if is_cold and models:
            self._observe_cold(kind, models, backend, seconds)
        else:
            self._observe_run(kind, backend, seconds)

    def _observe_cold(self, kind: str, models: Models, backend: BackendId, seconds: float) -> None:
        if (kind,) not in self._kinds:
            # Nobody knows which part of it was loading. The first run with the models in memory will tell.
            run_s = max(seconds - self.load_s(models, backend), seconds / 4)
            self._guesses.fold((kind,), run_s * self.speed(backend))
            return
        load_s = max(seconds - self.run_s(kind, backend), 0.0)
        self._loads.fold((models, backend), load_s)
        self._models.fold((models,), load_s)
        self._load.fold(load_s)

    def _observe_run(self, kind: str, backend: BackendId, seconds: float) -> None:
        if (known := self._kinds.get((kind,))) is not None:
            ratio = known.value / (seconds * self.speed(backend))
            speed = self.speed(backend) * min(max(ratio, 0.25), 4.0) ** NEW
            self._set_speed(backend, min(max(speed, 1 / MAX_SPEED), MAX_SPEED))
        self._guesses.pop((kind,), None)
        self._runs.fold((kind, backend), seconds)
        self._kinds.fold((kind,), seconds * self.speed(backend))
        self._run.fold(seconds * self.speed(backend))

    def forget(self, backend: BackendId) -> None:
        """Let go of a backend that is no longer configured."""
        self._sum -= self._speeds.pop(backend, 0.0)

    def _set_speed(self, backend: BackendId, speed: float) -> None:
        self._sum += speed - self._speeds.get(backend, 0.0)
        self._speeds[backend] = speed


class Popularity:
    """How often models are asked for: a count that fades.

    Args:
        fades_s: after so many seconds a request counts e times less.
    """

    def __init__(self, fades_s: float = 600.0) -> None:
        self._fades_s = fades_s
        self._counts: OrderedDict[Models, tuple[float, float]] = OrderedDict()  # -> count, and when it was that

    def asked(self, models: Models, now_s: float) -> None:
        """Count a request."""
        if models:
            self._counts[models] = self._faded(models, now_s) + 1.0, now_s
            self._counts.move_to_end(models)
            if len(self._counts) > REMEMBERED:
                self._counts.popitem(last=False)

    def per_second(self, models: Models, now_s: float) -> float:
        """Return the rate of requests of late."""
        return self._faded(models, now_s) / self._fades_s

    def _faded(self, models: Models, now_s: float) -> float:
        count, at_s = self._counts.get(models, (0.0, now_s))
        elapsed = (now_s - at_s) / self._fades_s
        return 0.0 if count == 0.0 else float(count * 2.718281828459045**-elapsed)
