"""Whether a prompt can run: ComfyUI's rules, and its words for what is wrong.

Values are converted in place, as there: `"5"` becomes 5 in the graph that is queued.
Source: ComfyUI 0.25.0, `execution.py` (`validate_prompt`, `validate_inputs`), `comfy_execution/validation.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import trace, type_name
from .graph import Graph, is_link
from .nodes import InputTypes, Node, input_info
from .world import World

Error = dict[str, Any]
_CONVERT: Mapping[str, Callable[[Any], Any]] = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}
_LONG_LIST = 20  # longer lists of choices are not sent back


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which outputs can run; `error` says why if none can. `node_errors` may tell of others that are left out."""

    outputs: list[str] = field(default_factory=list)
    error: Error | None = None
    node_errors: dict[str, Any] = field(default_factory=dict)


def validate(graph: Graph, targets: Any, nodes: Mapping[str, type[Node]], world: World) -> Verdict:
    """Judge a prompt; `targets` is its `partial_execution_targets` or None. Raises on graphs of another shape."""
    outputs = []
    for node_id, node in graph.items():
        known = nodes.get(node["class_type"]) if "class_type" in node else None
        if known is None:
            return Verdict(error=_missing_class(node_id, node, world))
        if known.output_node and (targets is None or node_id in targets):
            outputs.append(node_id)
    if not outputs:
        return Verdict(error=_error("prompt_no_outputs", "Prompt has no outputs", ""))
    return _Validator(graph, nodes, world).judge(outputs)


class _Validator:
    """One look at one prompt; remembers what it found out about each node."""

    def __init__(self, graph: Graph, nodes: Mapping[str, type[Node]], world: World) -> None:
        self._graph, self._nodes, self._world = graph, nodes, world
        self._found: dict[str, tuple[bool, list[Error]]] = {}
        self._path: list[str] = []

    def judge(self, outputs: list[str]) -> Verdict:
        good: list[str] = []
        complaints: list[str] = []
        node_errors: dict[str, Any] = {}
        for output in outputs:
            try:
                valid, reasons = self._look_at(output)
            except Exception as exc:  # a malformed graph is the caller's error, and is told as ComfyUI tells it
                details = {"exception_type": type_name(exc), "traceback": trace(exc)}
                valid = False
                reasons = [_error("exception_during_validation", "Exception when validating node", str(exc), **details)]
                self._path.clear()
                self._found[output] = (False, reasons)
            if valid:
                good.append(output)
                continue
            complaints += [f"{reason['message']}: {reason['details']}" for reason in reasons]
            for node_id, (fine, errors) in self._found.items():
                if not fine and errors:
                    entry = node_errors.setdefault(
                        node_id,
                        {
                            "errors": errors,
                            "dependent_outputs": [],
                            "class_type": self._graph[node_id]["class_type"],
                        },
                    )
                    entry["dependent_outputs"].append(output)
        if good:
            return Verdict(good, None, node_errors)
        message = "Prompt outputs failed validation"
        return Verdict(good, _error("prompt_outputs_failed_validation", message, "\n".join(complaints)), node_errors)

    def _look_at(self, node_id: str) -> tuple[bool, list[Error]]:
        if node_id in self._found:
            return self._found[node_id]
        if self._world.profile.finds_cycles and node_id in self._path:
            return self._cycle(node_id)
        inputs = self._graph[node_id]["inputs"]
        node = self._nodes[self._graph[node_id]["class_type"]]
        types = node.input_types(self._world)
        errors: list[Error] = []
        valid = True
        for name in (*types.get("required", {}), *types.get("optional", {})):
            if name not in inputs:
                if name in types.get("required", {}):
                    errors.append(_error("required_input_missing", "Required input is missing", name, input_name=name))
            elif isinstance(inputs[name], list):
                error, sound = self._link(node_id, name, inputs[name], types)
                valid = valid and sound
                errors += [error] if error else []
            else:
                error = self._value(node, name, inputs, types)
                errors += [error] if error else []
        errors += self._own_rules(node, inputs, types)
        before = self._found.get(node_id, (True, []))  # a cycle may have been found through this node
        result = (before[0] and valid and not errors, before[1] + [e for e in errors if e not in before[1]])
        self._found[node_id] = result
        return result

    def _cycle(self, node_id: str) -> tuple[bool, list[Error]]:
        path = [*self._path[self._path.index(node_id) :], node_id]
        members = list(dict.fromkeys(path))
        told = " -> ".join(f"{member} ({self._graph[member]['class_type']})" for member in path)
        for member in members:
            error = _error("dependency_cycle", "Dependency cycle detected", told, node_id=member, cycle_nodes=members)
            self._found[member] = (False, [error])
        return self._found[node_id]

    def _link(self, node_id: str, name: str, value: list[Any], types: InputTypes) -> tuple[Error | None, bool]:
        """Judge a linked input; also says whether what it links to is valid."""
        config = _config(types, name)
        if len(value) != 2:
            message = "Bad linked input, must be a length-2 list of [node_id, slot_index]"
            more = {"input_name": name, "input_config": config, "received_value": value}
            return _error("bad_linked_input", message, name, **more), True
        source = value[0]
        received = self._nodes[self._graph[source]["class_type"]].returns[value[1]]
        if not _fits(received, config[0]):
            return (
                _error(
                    "return_type_mismatch",
                    "Return type mismatch between linked nodes",
                    f"{name}, received_type({received}) mismatch input_type({config[0]})",
                    input_name=name,
                    input_config=config,
                    received_type=received,
                    linked_node=value,
                ),
                True,
            )
        depth = len(self._path)
        self._path.append(node_id)
        try:
            return None, self._look_at(source)[0]
        except Exception as exc:  # as in `judge`
            inner = _error(
                "exception_during_inner_validation",
                "Exception when validating inner node",
                str(exc),
                input_name=name,
                input_config=config,
                exception_message=str(exc),
                exception_type=type_name(exc),
                traceback=trace(exc),
                linked_node=value,
            )
            self._found[source] = (False, [inner])
            return None, False
        finally:
            del self._path[depth:]

    def _value(self, node: type[Node], name: str, inputs: dict[str, Any], types: InputTypes) -> Error | None:
        """Convert and judge a plain input."""
        config = _config(types, name)
        kind, options = config
        value = inputs[name]
        more: dict[str, Any] = {"input_name": name, "input_config": config}
        try:
            if isinstance(value, dict) and "__value__" in value:
                value = inputs[name] = value["__value__"]
            if isinstance(kind, str) and kind in _CONVERT:
                value = inputs[name] = _CONVERT[kind](value)
        except Exception as exc:  # whatever the conversion raises is the caller's error
            message = f"Failed to convert an input value to a {kind} value"
            more |= {"received_value": value, "exception_message": str(exc)}
            return _error("invalid_input_type", message, f"{name}, {value}, {exc}", **more)
        if name in node.validated:
            return None
        more["received_value"] = value
        if "min" in options and value < options["min"]:
            return _error("value_smaller_than_min", f"Value {value} smaller than min of {options['min']}", name, **more)
        if "max" in options and value > options["max"]:
            return _error("value_bigger_than_max", f"Value {value} bigger than max of {options['max']}", name, **more)
        if isinstance(kind, list) and value not in kind:
            choices = f"(list of length {len(kind)})" if len(kind) > _LONG_LIST else str(kind)
            if len(kind) > _LONG_LIST:
                more["input_config"] = None
            shown = repr(value) if self._world.profile.lists_several_bad_values else f"'{value}'"
            return _error("value_not_in_list", "Value not in list", f"{name}: {shown} not in {choices}", **more)
        return None

    def _own_rules(self, node: type[Node], inputs: dict[str, Any], types: InputTypes) -> list[Error]:
        """Ask the node class about the inputs it judges itself."""
        if not node.validated:
            return []
        values = {name: None if is_link(inputs[name]) else inputs[name] for name in node.validated if name in inputs}
        for name in node.validated:
            if name not in values and name in types.get("required", {}):
                raise TypeError(f"{node.name}.VALIDATE_INPUTS() missing 1 required positional argument: '{name}'")
        answer = node.validate(self._world, values)
        if answer is True:
            return []
        reason = "" if answer is False else f" - {answer}"
        message = "Custom validation failed for node"
        return [_error("custom_validation_failed", message, f"{name}{reason}", input_name=name) for name in values]


def _error(kind: str, message: str, details: str, **extra_info: Any) -> Error:
    return {"type": kind, "message": message, "details": details, "extra_info": extra_info}


def _config(types: InputTypes, name: str) -> tuple[Any, dict[str, Any]]:
    info = input_info(types, name)
    assert info is not None
    return info[0], info[2]


def _fits(received: str, wanted: Any) -> bool:
    """Whether an output can feed an input; both may name several types, separated by commas."""
    if received == wanted:
        return True
    if not isinstance(wanted, str):
        return False
    return bool({part.strip() for part in received.split(",")} & {part.strip() for part in wanted.split(",")})


def _missing_class(node_id: str, node: dict[str, Any], world: World) -> Error:
    class_type = node.get("class_type")
    details = f"Node ID '#{node_id}'"
    if not world.profile.names_missing_nodes:
        message = "Cannot execute because a node is missing the class_type property."
        if "class_type" in node:
            message = f"Cannot execute because node {class_type} does not exist."
        return _error("invalid_prompt", message, details)
    title = node.get("_meta", {}).get("title", class_type)
    if "class_type" in node:
        message = f"Node '{title}' not found. The custom node may not be installed."
    else:
        shown = title or f"ID #{node_id}"
        message = f"Node '{shown}' has no class_type. The workflow may be corrupted or a custom node is missing."
    return _error("missing_node_type", message, details, node_id=node_id, class_type=class_type, node_title=title)
