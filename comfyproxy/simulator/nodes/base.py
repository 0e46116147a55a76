"""What a simulated node class is, and what one execution of it gets and gives.

Source: ComfyUI 0.25.0, `server.py` (`node_info`) and the classes in `nodes.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..progress import ProgressBar
from ..world import World

# Per category (required, optional): per input its type (a name, or a list of choices) and perhaps its options.
# The category `hidden` maps names to words such as PROMPT.
InputTypes = dict[str, dict[str, Any]]
UI = dict[str, list[Any]]

MAX_RESOLUTION = 16384


@dataclass(frozen=True, slots=True)
class Made:
    """What a node returns: its outputs, and what is to be shown of them."""

    outputs: tuple[Any, ...] = ()
    ui: UI | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """One execution of a node."""

    inputs: Mapping[str, Any]
    world: World
    progress_bar: Callable[[int], ProgressBar]  # takes the number of steps


class Node(ABC):
    """A node class. Its objects live as long as their node is part of every prompt, as in ComfyUI."""

    name: ClassVar[str]
    category: ClassVar[str]
    display_name: ClassVar[str | None] = None
    description: ClassVar[str] = ""
    python_module: ClassVar[str] = "nodes"
    returns: ClassVar[tuple[str, ...]] = ()
    output_node: ClassVar[bool] = False
    output_tooltips: ClassVar[tuple[str, ...] | None] = None
    search_aliases: ClassVar[tuple[str, ...]] = ()
    essentials: ClassVar[str | None] = None
    older: ClassVar[Mapping[str, str]] = {}  # category, display_name or description, where 0.3.64 has another
    changes: ClassVar[bool] = False  # whether `fingerprint` says anything
    validated: ClassVar[tuple[str, ...]] = ()  # the inputs that `validate` judges instead of the general rules

    def __init__(self, world: World) -> None:
        self.world = world

    @classmethod
    @abstractmethod
    def input_types(cls, world: World) -> InputTypes:
        """Return what the node takes, as it stands now: lists of files change."""

    @abstractmethod
    async def run(self, call: Call) -> Made:
        """Execute the node."""

    @classmethod
    def validate(cls, world: World, values: Mapping[str, Any]) -> bool | str:
        """Judge the `validated` inputs that are there: True, False, or what is wrong."""
        return True

    @classmethod
    def fingerprint(cls, world: World, inputs: Mapping[str, Any]) -> Any:
        """Return what the result depends on beside the inputs, which come without their links."""
        return False


def input_info(types: InputTypes, name: str) -> tuple[Any, str, dict[str, Any]] | None:
    """Return type, category and options of an input, or None if there is no such input."""
    for category in ("required", "optional", "hidden"):
        if name in types.get(category, {}):
            info = types[category][name]
            return info[0], category, info[1] if len(info) > 1 and isinstance(info[1], dict) else {}
    return None


def describe(node: type[Node], world: World) -> dict[str, Any]:
    """Return the entry of `/object_info` for a class, in the words of the imitated version."""
    newer = world.profile.describes_more
    older = {} if newer else node.older
    types = node.input_types(world)
    info: dict[str, Any] = {
        "input": types,
        "input_order": {category: list(inputs) for category, inputs in types.items()},
    }
    if newer:
        info["is_input_list"] = False
    info |= {
        "output": node.returns,
        "output_is_list": [False] * len(node.returns),
        "output_name": node.returns,
        "name": node.name,
        "display_name": older.get("display_name", node.display_name) or node.name,
        "description": older.get("description", node.description),
        "python_module": node.python_module,
        "category": older.get("category", node.category),
        "output_node": node.output_node,
    }
    if newer:
        info["has_intermediate_output"] = False
    if node.output_tooltips is not None:
        info["output_tooltips"] = node.output_tooltips
    if newer:
        info["search_aliases"] = list(node.search_aliases)
        if node.essentials is not None:
            info["essentials_category"] = node.essentials
    return info
