"""What a job needs of a backend that shall run it."""

from dataclasses import dataclass

from comfyproxy.core.jobs import BackendId


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a backend must have for a job; equal for all jobs that the same backends can run.

    Model names are in the form of `canonical`: with slashes, whatever the servers' systems write.
    """

    classes: frozenset[str] = frozenset()  # node classes of the graph
    choices: frozenset[tuple[str, str, str]] = frozenset()  # (class, list input, chosen value)
    capabilities: frozenset[str] = frozenset()  # declared ones that the request asks for
    pinned: BackendId | None = None  # the only backend that may run it

    # Those of the choices that must be loaded into a GPU's memory: files of checkpoints, LoRAs, VAEs and the like.
    models: frozenset[str] = frozenset()


ANYWHERE = Needs()
