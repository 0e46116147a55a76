"""Runs prompts, one at a time, and tells of it as ComfyUI does.

Source: ComfyUI 0.25.0 and 0.3.64, `execution.py` (`PromptExecutor`, `execute`), `main.py` (`prompt_worker`).
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .cache import Cache, Result
from .errors import OOM_TIPS, Interrupted, OutOfMemory, SimulatedFailure, plain, trace, type_name
from .faults import Faults
from .graph import DependencyCycle, Graph, Schedule, is_link
from .history import History
from .nodes import Call, Node, input_info
from .profile import SECRETS
from .progress import Progress, ProgressBar
from .queue import Item, Queue
from .sockets import Sockets
from .world import World


@dataclass(slots=True)
class _Run:
    """One prompt while it runs."""

    prompt_id: str
    graph: Graph
    extra_data: dict[str, Any]
    client_id: str | None
    progress: Progress
    messages: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    executed: list[str] = field(default_factory=list)
    results: dict[str, Result] = field(default_factory=dict)
    success: bool = True
    called: bool = False  # whether any node was executed rather than taken from the cache


class Executor:
    """The worker of a simulated server.

    Attributes:
        client_id: whose prompt runs, or ran last.
        last_node_id: the node that runs, if its client is known.
    """

    def __init__(
        self,
        world: World,
        nodes: Mapping[str, type[Node]],
        queue: Queue,
        history: History,
        sockets: Sockets,
        faults: Faults,
        began: list[str],
    ) -> None:
        self._world, self._nodes, self._faults, self._began = world, nodes, faults, began
        self._queue, self._history, self._sockets = queue, history, sockets
        self._cache = Cache(keeps_old=world.profile.keeps_old_results)
        self._objects: dict[tuple[str, str], Node] = {}
        self._interrupted = False
        self.client_id: str | None = None
        self.last_node_id: str | None = None

    def interrupt(self) -> None:
        """Stop the running prompt at its next step or node; forgotten if none runs before the next one starts."""
        self._interrupted = True

    async def work(self) -> None:
        """Run what the queue holds, for ever."""
        while True:
            taken = await self._queue.get()
            await self._faults.gate()
            if taken is not None:
                await self._run(*taken)
            flags = self._queue.take_flags()
            free_memory = flags.get("free_memory", False)
            if flags.get("unload_models", free_memory):
                self._world.memory.unload_all()
            if free_memory:
                self._cache.clear()
                self._objects.clear()

    async def _run(self, item: Item, key: int) -> None:
        _, prompt_id, graph, extra_data, outputs, secrets = item
        self._interrupted = False
        client_id = extra_data.get("client_id")
        self.client_id = None if client_id is None else str(client_id)
        self._began.append(prompt_id)
        progress = Progress(prompt_id, self.client_id, self._sockets, self._check)
        for node in graph.values():  # one that nothing depends on was not validated
            node.setdefault("inputs", {})
        run = _Run(prompt_id, graph, {**extra_data, **secrets}, self.client_id, progress)
        await self._execute(run, outputs)
        self._settle(run, self._queue.done(key))
        if self.client_id is not None:
            self._sockets.send("executing", {"node": None, "prompt_id": prompt_id}, self.client_id)

    async def _execute(self, run: _Run, outputs: list[str]) -> None:
        self._tell(run, "execution_start", {"prompt_id": run.prompt_id})
        self._cache.begin(run.graph, self._fingerprints(run.graph))
        self._objects = {key: node for key, node in self._objects.items() if self._in_graph(run.graph, *key)}
        cached = [node_id for node_id in run.graph if self._cache.get(node_id)]
        self._tell(run, "execution_cached", {"nodes": cached, "prompt_id": run.prompt_id})
        schedule = Schedule(
            run.graph,
            outputs,
            is_cached=lambda node_id: self._cache.get(node_id) is not None,
            is_output=lambda node_id: self._class_of(run.graph, node_id).output_node,
        )
        while schedule:
            await asyncio.sleep(0)
            try:
                node_id = schedule.next()
            except DependencyCycle as exc:
                run.success = False
                details = {**self._details(exc, {}), "exception_message": str(exc)}
                self._failed(run, exc.node_id, "execution_error", details)
                break
            run.success = await self._node(run, node_id)
            if not run.success:
                break
            schedule.finish(node_id)
        else:
            self._tell(run, "execution_success", {"prompt_id": run.prompt_id})
        self.last_node_id = None

    async def _node(self, run: _Run, node_id: str) -> bool:
        """Execute one node, or take it from the cache; tell whether that went well."""
        result = self._cache.get(node_id)
        if result is not None:
            if run.client_id is not None:
                self._show(run, node_id, result.shown)
                run.results[node_id] = result
            run.progress.finish(node_id)
            return True
        run.progress.start(node_id)
        inputs = self._inputs(run, node_id)
        if run.client_id is not None:
            self.last_node_id = node_id
            data = {"node": node_id, "display_node": node_id, "prompt_id": run.prompt_id}
            self._sockets.send("executing", data, run.client_id)
        try:
            made = await self._object(run.graph, node_id).run(self._call(run, node_id, inputs))
        except Interrupted:
            self._failed(run, node_id, "execution_interrupted", {})
            return False
        except Exception as exc:  # whatever a node raises is the prompt's failure, and never ours
            self._failed(run, node_id, "execution_error", self._details(exc, inputs))
            return False
        meta = {"node_id": node_id, "display_node": node_id, "parent_node": None, "real_node_id": node_id}
        result = Result(made.outputs, made.ui or None, meta if made.ui else None)
        if made.ui:
            run.results[node_id] = result
            if run.client_id is not None:
                self._show(run, node_id, made.ui)
        self._cache.put(node_id, result)
        run.progress.finish(node_id)
        run.executed.append(node_id)
        return True

    def _call(self, run: _Run, node_id: str, inputs: dict[str, Any]) -> Call:
        """Return what the node gets. Raises what is to go wrong before it starts."""
        self._check()
        if not run.called:
            run.called = True
            if self._faults.take("out_of_memory"):
                raise OutOfMemory("Allocation on device ")
            if self._faults.take("fail_prompts"):
                raise SimulatedFailure("simulated failure")

        def bar(total: int) -> ProgressBar:
            clock = (lambda: self._world.pace.spent_s) if self._world.profile.throttles_progress else None
            return ProgressBar(run.progress, node_id, total, clock=clock)

        return Call(inputs, self._world, bar)

    def _details(self, exc: Exception, inputs: dict[str, Any]) -> dict[str, Any]:
        tips = ""
        if isinstance(exc, OutOfMemory):
            tips = OOM_TIPS
            self._world.memory.unload_all()
        return {
            "exception_message": f"{exc}\n{tips}",
            "exception_type": type_name(exc),
            "traceback": trace(exc),
            "current_inputs": {name: [plain(value)] for name, value in inputs.items()},
            "current_outputs": self._cache.nodes(),
        }

    def _failed(self, run: _Run, node_id: str, event: str, more: dict[str, Any]) -> None:
        data = {
            "prompt_id": run.prompt_id,
            "node_id": node_id,
            "node_type": run.graph[node_id]["class_type"],
            "executed": list(run.executed),
        }
        self._tell(run, event, {**data, **more}, broadcast=event == "execution_interrupted")

    def _settle(self, run: _Run, item: Item) -> None:
        """Write the history entry, then tell of the shorter queue."""
        results = run.results
        if self._world.profile.records_cached_without_client:
            known = {node_id: self._cache.get(node_id) for node_id in run.graph}
            results = {node_id: result for node_id, result in known.items() if result is not None}
        shown = {node_id: result for node_id, result in results.items() if result.shown is not None}
        number, prompt_id, graph, extra_data, outputs, _ = item
        extra_data = {name: value for name, value in extra_data.items() if name not in SECRETS}
        entry = {
            "prompt": (number, prompt_id, graph, extra_data, outputs),
            "outputs": {node_id: result.shown for node_id, result in shown.items()},
            "status": {
                "status_str": "success" if run.success else "error",
                "completed": run.success,
                "messages": run.messages,
            },
            "meta": {node_id: result.meta for node_id, result in shown.items()},
        }
        self._history.add(prompt_id, entry)
        self._queue.announce()

    def _tell(self, run: _Run, event: str, data: dict[str, Any], *, broadcast: bool = False) -> None:
        """Add a message to the history entry, and send it if there is a client (or to everybody)."""
        data = {**data, "timestamp": int(time.time() * 1000)}
        run.messages.append((event, data))
        if run.client_id is not None or broadcast:
            self._sockets.send(event, data, run.client_id)

    def _show(self, run: _Run, node_id: str, ui: dict[str, Any] | None) -> None:
        data = {"node": node_id, "display_node": node_id, "output": ui, "prompt_id": run.prompt_id}
        self._sockets.send("executed", data, run.client_id)

    def _inputs(self, run: _Run, node_id: str) -> dict[str, Any]:
        """Resolve a node's links, leave out inputs it does not know, and add the hidden ones."""
        types = self._class_of(run.graph, node_id).input_types(self._world)
        inputs: dict[str, Any] = {}
        for name, value in run.graph[node_id]["inputs"].items():
            if is_link(value):
                source = self._cache.get(value[0]) if value[0] in run.graph else None
                index = int(value[1])
                inputs[name] = source.outputs[index] if source and index in range(len(source.outputs)) else None
            elif input_info(types, name) is not None:
                inputs[name] = value
        hidden = {"PROMPT": run.graph, "EXTRA_PNGINFO": run.extra_data.get("extra_pnginfo"), "UNIQUE_ID": node_id}
        return inputs | {name: hidden[word] for name, word in types.get("hidden", {}).items()}

    def _fingerprints(self, graph: Graph) -> dict[str, Any]:
        """Ask the nodes what they depend on; the answers go into the graph, too, and so into the saved pictures."""
        for node_id, node in graph.items():
            kind = self._class_of(graph, node_id)
            if kind.changes and "is_changed" not in node:
                inputs = {name: value for name, value in node["inputs"].items() if not is_link(value)}
                try:
                    node["is_changed"] = [kind.fingerprint(self._world, inputs)]
                except Exception:  # the node may be one that nothing needs, and that was not validated
                    node["is_changed"] = float("nan")  # equal to nothing: never cached
        return {node_id: node["is_changed"] for node_id, node in graph.items() if "is_changed" in node}

    def _object(self, graph: Graph, node_id: str) -> Node:
        key = (node_id, graph[node_id]["class_type"])
        if key not in self._objects:
            self._objects[key] = self._class_of(graph, node_id)(self._world)
        return self._objects[key]

    def _class_of(self, graph: Graph, node_id: str) -> type[Node]:
        return self._nodes[graph[node_id]["class_type"]]

    def _in_graph(self, graph: Graph, node_id: str, class_type: str) -> bool:
        return node_id in graph and graph[node_id]["class_type"] == class_type

    def _check(self) -> None:
        if self._interrupted:
            self._interrupted = False
            raise Interrupted
