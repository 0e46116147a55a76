"""What a job needs of a backend that shall run it, and what decides how long it takes: read from its graph."""

import hashlib
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

from comfyproxy.core.jobs import BackendId
from comfyproxy.core.model_names import canonical, is_model
from comfyproxy.core.steps import steps_of

__all__ = ["ANYWHERE", "Needs", "NeedsPool", "Reading", "canonical", "read"]


@dataclass(frozen=True, slots=True, kw_only=True, weakref_slot=True)
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


class NeedsPool:
    """Gives equal needs as one object for as long as somebody holds it: a hundred thousand jobs are of a few kinds."""

    def __init__(self) -> None:
        self._known: WeakValueDictionary[Any, Needs] = WeakValueDictionary()

    def share(self, needs: Needs) -> Needs:
        """Return the one that is equal."""
        # The key must not be the value, which it would keep alive; the models follow from the choices.
        key = needs.classes, needs.choices, needs.capabilities, needs.pinned
        return self._known.setdefault(key, needs)


@dataclass(frozen=True, slots=True)
class Reading:
    """What a graph tells."""

    needs: Needs
    kind: str  # digest of what decides how long it takes; graphs that differ in seed and text alone are of one kind


# Inputs that change how long a node takes, where they are numbers, or chosen by name.
_NUMBERS = frozenset(
    {
        *("steps", "denoise", "width", "height", "megapixels", "upscale_by", "scale_by"),
        *("batch_size", "length", "frames", "num_frames", "video_frames"),
    }
)
_NAMES = frozenset({"sampler_name", "scheduler"})

# Files of the input folder: the proxy brings them along, whatever the server listed before (LoadLatent and many custom
# nodes list that folder without saying that they take uploads).
_BROUGHT = re.compile(
    r"\.(?:png|jpe?g|webp|gif|bmp|tiff?|avif|exr|hdr|mp4|m4v|webm|mov|mkv|avi|mpe?g|wav|mp3|flac|ogg|opus|m4a|aac"
    r"|latent|glb|gltf|obj|fbx|stl|ply|splat|ksplat|spz)(?: \[(?:input|output|temp)\])?\Z",
    re.IGNORECASE,
)


def read(
    graph: bytes,
    combos: Mapping[str, Collection[str]],
    *,
    capabilities: frozenset[str] = frozenset(),
    pinned: BackendId | None = None,
    share: Callable[[Needs], Needs] = lambda needs: needs,
) -> Reading:
    """Read a graph; what is not one needs nothing, and its backend will say what is wrong.

    Args:
        combos: the names of the list inputs of each class, over the fleet. What no backend is known to list is no need.
        share: returns the needs to keep of equal ones (`NeedsPool.share`).
    """
    classes: set[str] = set()
    choices: set[tuple[str, str, str]] = set()
    models: set[str] = set()
    nodes: list[str] = []
    for step in steps_of(graph).values():
        node_class, inputs = step.class_type, step.inputs
        if not node_class:
            continue
        classes.add(node_class)
        lists = combos.get(node_class, ())
        traits: list[str] = []
        for name, value in inputs.items() if isinstance(inputs, dict) else ():
            if isinstance(value, str):
                # Where no catalog is known yet, as after a restart, models can be told by their names.
                is_chosen = name in lists if combos else is_model(value)
                if is_chosen and not _BROUGHT.search(value):
                    chosen = canonical(value)
                    choices.add((node_class, name, chosen))
                    if is_model(chosen):
                        models.add(chosen)
                if name in _NAMES:
                    traits.append(f"{name}={value}")
            elif name in _NUMBERS and isinstance(value, int | float) and not isinstance(value, bool):
                traits.append(f"{name}={_number(value)}")
        traits.sort()
        nodes.append("\n".join((node_class, *traits)))
    needs = Needs(
        classes=frozenset(classes),
        choices=frozenset(choices),
        capabilities=capabilities,
        pinned=pinned,
        models=frozenset(models),
    )
    return Reading(share(needs), _digest(nodes, models))


def _number(value: float) -> float:
    try:
        return float(value)  # 20 and 20.0 take equally long
    except OverflowError:
        return float("inf")


def _digest(nodes: list[str], models: Collection[str]) -> str:
    text = "\0".join((*sorted(nodes), "", *sorted(models)))
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).hexdigest()
