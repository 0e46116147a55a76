"""A trace: which jobs came when, and how long each takes. One job per line, as JSON.

{"at_s": 12.5, "client": "anna", "model": "sdxl.safetensors", "kind": "portrait", "run_s": 8.1}

at_s      when it comes, seconds after the trace's beginning
client    whose it is; those without are one client's
model     what must be in a GPU's memory for it; without: nothing
kind      jobs of one kind and model take about the same time on one backend
run_s     seconds that it runs on a backend of speed 1 that has the model in memory
priority  the larger, the more urgent (0)
front     whether it goes before its client's other jobs, as ComfyUI's `front` does (false)
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from comfyproxy.core import rawjson
from comfyproxy.core.errors import ComfyproxyError
from comfyproxy.core.words import nearest
from comfyproxy.settings.kinds import convert, kinds
from comfyproxy.settings.problems import Problem
from comfyproxy.settings.rules import Range


class BadPlan(ComfyproxyError):
    """A trace or a fleet cannot be used; str() says where, and why, a line for each."""


@dataclass(frozen=True, kw_only=True)
class TraceJob:
    """One line of a trace; see there."""

    at_s: Annotated[float, Range(minimum=0, unit="seconds")]
    run_s: Annotated[float, Range(above=0, unit="seconds")]
    client: str = ""
    model: str = ""
    kind: str = ""
    priority: int = 0
    front: bool = False


def read_trace(file: Path) -> list[TraceJob]:
    """Return the jobs of a file in order of their time; empty lines are passed over.

    Raises BadPlan with the first line that cannot be used.
    """
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as exc:
        raise BadPlan(str(Problem(str(file), exc.strerror or str(exc)))) from exc
    jobs = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                jobs.append(_job(line))
            except ValueError as exc:
                raise BadPlan(str(Problem(str(file), str(exc), line=number))) from exc
    if not jobs:
        raise BadPlan(str(Problem(str(file), "there is no job in it")))
    return sorted(jobs, key=lambda job: job.at_s)


def write_trace(file: Path, jobs: Iterable[TraceJob]) -> None:
    """Write jobs to a file. Raises OSError."""
    file.write_bytes(b"".join(rawjson.encode(_short(job)) + b"\n" for job in jobs))


def _job(line: bytes) -> TraceJob:
    try:
        found = rawjson.decode(line)
    except ValueError as exc:
        raise ValueError(f"not valid JSON: {exc}") from exc
    if not isinstance(found, dict):
        raise ValueError(f'expected an object as {{"at_s": 0, "run_s": 10}}, found {_shown(found)}')
    known = kinds(TraceJob)
    for key in found:
        if key not in known:
            near = nearest(key, known)
            hint = f"did you mean {near}?" if near else f"known are {', '.join(known)}"
            raise ValueError(f"{key}: unknown key; {hint}")
    for key, kind in known.items():
        if kind.is_required and key not in found:
            raise ValueError(f"{key} is missing")
    return TraceJob(**{key: _value(key, value) for key, value in found.items()})


def _value(key: str, value: Any) -> Any:
    if value == "" and kinds(TraceJob)[key].type is str:
        return value
    try:
        return convert(kinds(TraceJob)[key], value, value if isinstance(value, str) else _shown(value))
    except ValueError as exc:
        raise ValueError(f"{key}: {exc}") from exc


def _short(job: TraceJob) -> dict[str, Any]:
    """Return what of a job is not as it would be without being said."""
    values = {"at_s": round(job.at_s, 3), "client": job.client, "model": job.model, "kind": job.kind}
    values["run_s"] = max(round(job.run_s, 3), 0.001)
    rest = {"priority": job.priority, "front": job.front}
    return {**{key: value for key, value in values.items() if value != ""}, **{k: v for k, v in rest.items() if v}}


def _shown(value: Any) -> str:
    return rawjson.encode(value).decode()
