"""What goes into the scheduler and what comes out of it."""

from collections.abc import Callable
from dataclasses import dataclass, field

from comfyproxy.core.jobs import BackendId
from comfyproxy.core.needs import ANYWHERE, Needs


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A job as the scheduler sees it."""

    prompt_id: str
    client: str = ""  # whose it is, for fairness; those that name nobody are one client
    number: float = 0.0  # place among the jobs of its client and priority: smaller goes first
    priority: int = 0  # the larger, the more urgent
    needs: Needs = ANYWHERE
    kind: str = ""  # of workflow: jobs of one kind take about the same time on one backend
    excluded: frozenset[BackendId] = frozenset()  # must not get it, for reasons of this job alone


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendSpec:
    """A backend as the scheduler sees it.

    Attributes:
        weight: share of the jobs under the strategy `weighted`; None: by measured speed.
        priority: 1 is used first under the strategy `priority_based`.
        can: whether it can run what needs this, as far as is known.
    """

    backend: BackendId
    max_concurrent: int = 1
    weight: float | None = None
    priority: int | None = None
    can: Callable[[Needs], bool] = field(default=lambda needs: True, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class MaxBypass:
    """How long a job may be passed over by others for the sake of models in memory.

    Attributes:
        count: so many jobs may go before one whose turn it is; one per backend where others' clients are concerned.
        seconds: and for so long.
    """

    count: int = 1_000
    seconds: float = 600.0


@dataclass(frozen=True, slots=True)
class Assignment:
    """A job goes to a backend now."""

    prompt_id: str
    backend: BackendId
    why: str  # a few words for people


@dataclass(frozen=True, slots=True)
class Outlook:
    """How long a job is expected to take on a backend, in seconds."""

    wait_s: float  # until the backend is done with what it has
    load_s: float
    run_s: float
    holds_models: bool
