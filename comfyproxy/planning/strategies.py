"""The proxy's own scheduler, as `comparing` wants it."""

from comfyproxy.core.scheduling.scheduler import Scheduler
from comfyproxy.core.scheduling.strategies import NAMES, make_strategy

__all__ = ["NAMES", "make_scheduler"]


def make_scheduler(name: str) -> Scheduler:
    """Return a new scheduler with the strategy of this name."""
    return Scheduler(make_strategy(name))
