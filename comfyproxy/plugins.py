"""Strategies that other packages bring, by entry points of the group `comfyproxy.strategies`.

Such a package says in its `pyproject.toml`:

    [project.entry-points."comfyproxy.strategies"]
    my_strategy = "my_package:MyStrategy"

and `nodes.load_balancing.strategy: my_strategy` chooses it.
"""

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeAlias

from comfyproxy.core.errors import ComfyproxyError
from comfyproxy.core.scheduling import strategies
from comfyproxy.core.scheduling.strategies import Strategy
from comfyproxy.core.words import nearest

GROUP = "comfyproxy.strategies"
BUILT_IN = strategies.NAMES

# A class or a function that returns a strategy; it is called without arguments.
Factory: TypeAlias = Callable[[], Any]


class BadPlugin(ComfyproxyError, ValueError):
    """A strategy that nobody has, or that cannot be loaded; str() is a line for whoever named it."""


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
    made: Strategy = strategy
    return made


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
