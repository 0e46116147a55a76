"""Strategies that other packages bring, by entry points of the group `comfyproxy.strategies`.

Such a package says in its `pyproject.toml`:

    [project.entry-points."comfyproxy.strategies"]
    my_strategy = "my_package:MyStrategy"

and `nodes.load_balancing.strategy: my_strategy` chooses it.
"""

import logging
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeAlias

from comfyproxy.core.errors import ComfyproxyError
from comfyproxy.core.jobs import BackendId
from comfyproxy.core.scheduling import strategies
from comfyproxy.core.scheduling.strategies import Candidate, Strategy
from comfyproxy.core.scheduling.types import Request
from comfyproxy.core.words import nearest

log = logging.getLogger(__name__)

GROUP = "comfyproxy.strategies"
BUILT_IN = strategies.NAMES

# A class or a function that returns a strategy; it is called without arguments.
Factory: TypeAlias = Callable[[], Any]


class BadPlugin(ComfyproxyError, ValueError):
    """A strategy that nobody has, or that cannot be loaded; str() is a line for whoever named it."""


class Guarded:
    """A stranger's strategy, asked in such a way that its mistakes stop nobody's jobs.

    Where it raises, or answers with something else than names, the backends are tried in the order in which it got
    them. It is always asked for its ranking, also where it derives from a built-in one, whose rankings are kept.
    """

    def __init__(self, name: str, strategy: Strategy) -> None:
        self.name, self.strategy = name, strategy
        self._failures = 0

    def rank(self, job: Request, candidates: Sequence[Candidate]) -> Sequence[BackendId]:
        """Rank as the strategy does."""
        try:
            return _names(self.strategy.rank(job, list(candidates)))
        except Exception as exc:  # a stranger's code: it may raise anything
            self._failures += 1
            if self._failures & (self._failures - 1) == 0:  # the 1st, 2nd, 4th, 8th, ...: it is asked all the time
                log.exception(
                    'the strategy "%s" has failed (%d times so far); prompts go to whoever was unused for longest: %s',
                    self.name,
                    self._failures,
                    exc,
                )
            return [candidate.backend for candidate in candidates]


def strategy_names() -> list[str]:
    """Return what can be chosen: the built-in names, and then those of installed packages."""
    return [*BUILT_IN, *sorted(_installed().keys() - set(BUILT_IN))]


def make_strategy(name: str) -> Strategy:
    """Return a strategy, built in or installed. Raises BadPlugin."""
    if name in BUILT_IN:
        return strategies.make_strategy(name)
    factory = load_strategy(name)
    try:
        strategy = factory()
    except Exception as exc:  # a stranger's code: it may raise anything
        raise BadPlugin(f'the strategy "{name}" cannot be made: {type(exc).__name__}: {exc}') from exc
    if not callable(getattr(strategy, "rank", None)):
        raise BadPlugin(f'the strategy "{name}" cannot be used: it has no method "rank"')
    return Guarded(name, strategy)


def load_strategy(name: str) -> Factory:
    """Return the factory of an installed strategy; a built-in name is never looked for among the installed ones.

    Raises BadPlugin if there is none of this name, or if its package cannot be imported.
    """
    point = None if name in BUILT_IN else _installed().get(name)
    if point is None:
        known = strategy_names()
        near = nearest(name, known)
        meant = f"did you mean {near}? Known are" if near else "known are"
        raise BadPlugin(f'there is no strategy "{name}"; {meant} {", ".join(known)}')
    try:
        factory = point.load()
    except Exception as exc:  # a stranger's module: it may raise anything
        why = f"{type(exc).__name__}: {exc}"
        raise BadPlugin(f'the strategy "{name}" cannot be loaded from {point.value}: {why}') from exc
    if not callable(factory):
        raise BadPlugin(f'the strategy "{name}" cannot be used: {point.value} is neither a class nor a function')
    loaded: Factory = factory
    return loaded


def _installed() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _names(ranked: Any) -> Sequence[BackendId]:
    """Return a ranking. Raises TypeError where it is none."""
    if isinstance(ranked, str | bytes):
        raise TypeError(f"a ranking is a list of names, not {ranked!r:.100}")
    names = list(ranked)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"a ranking is a list of names, and {name!r:.100} is none")
    return names
