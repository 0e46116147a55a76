"""The backends of a plan: how fast they are, what they have on disk, and how long a model takes to load.

backends:
  - {name: gpu-a, speed: 2.0}           # runs a job in half its run_s
  - {name: gpu-b, load_speed: 0.5}      # loads a model in twice its load_s
  - {name: gpu-c, models: [sdxl.safetensors], max_concurrent: 1, weight: 3, priority: 2}
models:
  sdxl.safetensors: {load_s: 14}        # seconds at load_speed 1; models that are not named: 20
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import yaml

from comfyproxy.core.jobs import BackendId
from comfyproxy.core.needs import Needs
from comfyproxy.core.scheduling.types import BackendSpec
from comfyproxy.core.words import nearest
from comfyproxy.planning.trace import BadPlan, TraceJob
from comfyproxy.settings.document import Items, Scalar, Table, Tree, joined, read_document
from comfyproxy.settings.kinds import Kind, convert, kinds
from comfyproxy.settings.problems import Problem
from comfyproxy.settings.rules import Range, checked_name, checked_text

LOAD_S = 20.0  # of a model about which nothing is known

Speed = Annotated[float, Range(above=0)]


@dataclass(frozen=True, kw_only=True)
class FleetBackend:
    """One backend: it holds one model in memory and runs one job at a time, in the order in which they come to it.

    Attributes:
        speed: run_s of a job divided by this is how long it runs here.
        load_speed: load_s of a model divided by this is how long it loads here.
        max_concurrent: how many jobs may be with it, the running one included.
        weight, priority: for the strategies that use them.
        models: those on its disk; None for all.
    """

    name: Annotated[str, checked_name]
    speed: Speed = 1.0
    load_speed: Speed = 1.0
    max_concurrent: Annotated[int, Range(minimum=1)] = 2
    weight: Annotated[float, Range(above=0)] | None = None
    priority: Annotated[int, Range(minimum=1)] | None = None
    models: tuple[Annotated[str, checked_text], ...] | None = None

    @property
    def id(self) -> BackendId:
        """Its name as the scheduler knows it."""
        return BackendId(self.name)

    def has(self, model: str) -> bool:
        """Whether it can run a job with this model."""
        return not model or self.models is None or model in self.models

    def spec(self) -> BackendSpec:
        """Return it as the scheduler sees it, who knows nothing of speeds."""
        has = self.has

        def can(needs: Needs) -> bool:
            return all(map(has, needs.models))

        return BackendSpec(
            backend=self.id, max_concurrent=self.max_concurrent, weight=self.weight, priority=self.priority, can=can
        )


@dataclass(frozen=True, kw_only=True)
class FleetModel:
    """A model: how many seconds it takes to load at load_speed 1."""

    load_s: Annotated[float, Range(minimum=0, unit="seconds")] = LOAD_S


@dataclass(frozen=True)
class Fleet:
    """Backends, and how long the models take to load."""

    backends: tuple[FleetBackend, ...]
    models: Mapping[str, FleetModel] = field(default_factory=dict)

    @property
    def capacity(self) -> float:
        """How many seconds of run_s the fleet works off in a second."""
        return sum(backend.speed for backend in self.backends)

    def load_s(self, model: str, backend: FleetBackend) -> float:
        """Return how long a model takes to load; nothing is loaded for a job without one."""
        return self.models.get(model, FleetModel()).load_s / backend.load_speed if model else 0.0

    def knowing(self, models: Mapping[str, FleetModel]) -> "Fleet":
        """Return it with further models; what it says of a model itself stands."""
        return replace(self, models={**models, **self.models})

    def slowed(self, factor: float) -> "Fleet":
        """Return one on which everything takes `factor` times as long."""
        slow = [replace(b, speed=b.speed / factor, load_speed=b.load_speed / factor) for b in self.backends]
        return replace(self, backends=tuple(slow))

    def check(self, jobs: Iterable[TraceJob]) -> None:
        """Raise BadPlan if a job's model is on no backend."""
        for model in {job.model for job in jobs}:
            if not any(backend.has(model) for backend in self.backends):
                raise BadPlan(f"the trace has jobs for {model}, which is under `models` of no backend")


def _built_in(*speeds: float) -> Fleet:
    return Fleet(tuple(FleetBackend(name=f"gpu-{index}", speed=speed) for index, speed in enumerate(speeds, start=1)))


BUILT_IN: Mapping[str, Fleet] = {
    "equal": _built_in(*[1.0] * 8),
    "unequal": _built_in(2.0, 2.0, 1.5, 1.0, 1.0, 0.75, 0.5, 0.5),
}


def read_fleet(file: Path) -> Fleet:
    """Read a fleet. Raises BadPlan, with all that is wrong in the file."""
    tree, problems = read_document(file)
    reader = _Reader(str(file), problems)
    fleet = reader.fleet(tree) if tree is not None else Fleet(())
    if not problems and not fleet.backends:
        reader.note("there is no backend in it; list them under backends", "", None)
    if problems:
        raise BadPlan("\n".join(map(str, sorted(problems, key=lambda problem: problem.line or 0))))
    return fleet


def write_fleet(file: Path, fleet: Fleet) -> None:
    """Write a fleet so that `read_fleet` reads it. Raises OSError."""
    backends = [_said(backend) for backend in fleet.backends]
    models = {name: {"load_s": round(model.load_s, 2)} for name, model in fleet.models.items()}
    text = yaml.safe_dump({"backends": backends, "models": models}, sort_keys=False, allow_unicode=True, width=120)
    file.write_text(text, "utf-8")


def _said(backend: FleetBackend) -> dict[str, Any]:
    values = {name: getattr(backend, name) for name in kinds(FleetBackend)}
    if backend.models is not None:
        values["models"] = list(backend.models)
    return {name: value for name, value in values.items() if value is not None}


@dataclass(slots=True)
class _Reader:
    where: str
    problems: list[Problem]

    def fleet(self, tree: Tree) -> Fleet:
        parts = self._known(tree, "", ("backends", "models"))
        backends: dict[str, FleetBackend] = {}
        for index, item in enumerate(self._items(parts.get("backends"), "backends")):
            path = joined("backends", index)
            backend = self._section(FleetBackend, item, path)
            if backend is not None and backends.setdefault(backend.name, backend) is not backend:
                self.note(f'the name "{backend.name}" is taken by another backend', joined(path, "name"), item.line)
        models: dict[str, FleetModel] = {}
        listed = parts.get("models")
        if isinstance(listed, Table):
            for name, (_, item) in listed.entries.items():
                model = self._section(FleetModel, item, joined("models", name))
                if model is not None:
                    models[name] = model
        elif listed is not None and not _is_nothing(listed):
            self.note("expected a mapping, as {sdxl.safetensors: {load_s: 14}}", "models", listed.line)
        return Fleet(tuple(backends.values()), models)

    def _section(self, section: type, tree: Tree, path: str) -> Any:
        """Return a section, or None if something is wrong in it, which is noted."""
        before = len(self.problems)
        known = kinds(section)
        parts = self._known(tree, path, known)
        given = {key: self._value(known[key], part, joined(path, key)) for key, part in parts.items()}
        for key, kind in known.items():
            if kind.is_required and key not in given and len(self.problems) == before:
                self.note(f"{key} is missing", path, tree.line)
        return section(**given) if len(self.problems) == before else None

    def _value(self, kind: Kind, tree: Tree, path: str) -> Any:
        if kind.item is not None:
            if _is_nothing(tree) and kind.is_optional:
                return None
            item = kind.item
            items = self._items(tree, path)
            return tuple(self._value(item, part, joined(path, index)) for index, part in enumerate(items))
        if not isinstance(tree, Scalar):
            return self.note(
                f"expected {kind}, found {'a list' if isinstance(tree, Items) else 'a mapping'}", path, tree.line
            )
        try:
            return convert(kind, tree.value, tree.written)
        except ValueError as exc:
            return self.note(str(exc), path, tree.line)

    def _known(self, tree: Tree, path: str, known: Iterable[str]) -> dict[str, Tree]:
        """Return what is under the keys of a mapping, and note those that mean nothing."""
        if not isinstance(tree, Table):
            if not _is_nothing(tree):
                self.note(f"expected a mapping with {', '.join(known)}", path, tree.line)
            return {}
        for key, (line, _) in tree.entries.items():
            if key not in known:
                near = nearest(key, known)
                hint = f"did you mean {near}?" if near else f"known here are {', '.join(known)}"
                self.note(f"unknown key; {hint}", joined(path, key), line)
        return {key: part for key, (_, part) in tree.entries.items() if key in known}

    def _items(self, tree: Tree | None, path: str) -> list[Tree]:
        if tree is None or _is_nothing(tree):
            return []
        if isinstance(tree, Items):
            return tree.items
        self.note('expected a list; begin each entry with "- "', path, tree.line)
        return []

    def note(self, message: str, path: str, line: int | None) -> None:
        self.problems.append(Problem(self.where, message, path, line))


def _is_nothing(tree: Tree) -> bool:
    return isinstance(tree, Scalar) and tree.value is None
