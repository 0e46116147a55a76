"""`comfyproxy plan`: what each strategy would do with a fleet and its jobs."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from comfyproxy.app import DATABASE
from comfyproxy.commands.process import fail
from comfyproxy.core.ports import StoreError
from comfyproxy.planning import report
from comfyproxy.planning.comparing import compare
from comfyproxy.planning.drawing import draw
from comfyproxy.planning.fleet import BUILT_IN, Fleet, read_fleet, write_fleet
from comfyproxy.planning.recorded import from_records
from comfyproxy.planning.strategies import NAMES as STRATEGIES
from comfyproxy.planning.strategies import make_scheduler
from comfyproxy.planning.trace import BadPlan, TraceJob, read_trace, write_trace
from comfyproxy.planning.workloads import make_workload
from comfyproxy.store.readonly import settled_jobs

DEFAULT_FLEET = "unequal"
DEFAULT_WORKLOAD = "mixed-many"


@dataclass(frozen=True)
class _Subject:
    """What is planned."""

    jobs: Sequence[TraceJob]
    trace: str
    fleet: Fleet
    fleet_name: str


def run(args: argparse.Namespace) -> int:
    """Write what is asked for, compare the strategies and print the figures; return the exit code."""
    try:
        subject = _subject(args)
        _export(args, subject)
        strategies = list(dict.fromkeys(args.strategy)) or STRATEGIES
        found = compare(subject.jobs, subject.fleet, strategies, make_scheduler)
        if args.svg is not None:
            args.svg.write_text(draw(found.runs), "utf-8")
            _note(f"wrote the picture to {args.svg}")
    except (BadPlan, StoreError) as exc:
        return fail("plan", str(exc))
    except OSError as exc:
        return fail("plan", f"{exc.filename}: {exc.strerror}")
    if args.json:
        about = {"trace": subject.trace, "jobs": len(subject.jobs), "fleet": subject.fleet_name}
        print(json.dumps(report.as_json(found, **about), indent=2))
        return 0
    backends = len(subject.fleet.backends)
    print(f"{len(subject.jobs)} jobs of {subject.trace} on {backends} backends of {subject.fleet_name}\n")
    print(
        report.table(
            found.figures, makespan_bound_s=found.makespan_bound_s, completion_bound_s=found.completion_bound_s
        )
    )
    print(f"\n{report.LEGEND}")
    return 0


def _subject(args: argparse.Namespace) -> _Subject:
    if args.from_store is not None:
        recorded = from_records(settled_jobs(args.from_store / DATABASE), keep_clients=args.client_ids)
        if recorded.left_out:
            _note(f"left out {recorded.left_out} jobs that failed, were cancelled or do not tell when they ran")
        if args.fleet is None:
            return _Subject(recorded.jobs, f"the store {args.from_store}", recorded.fleet, "the store")
        fleet = _fleet(args.fleet).knowing(recorded.fleet.models)
        return _Subject(recorded.jobs, f"the store {args.from_store}", fleet, f"the fleet {args.fleet}")
    if args.trace is not None:
        name = args.fleet or DEFAULT_FLEET
        return _Subject(read_trace(args.trace), f"the trace {args.trace}", _fleet(name), f"the fleet {name}")
    workload, of_workload = args.workload
    name = args.fleet or of_workload or DEFAULT_FLEET
    if of_workload and name != of_workload:
        raise BadPlan(f"the workload {workload}-{of_workload} is for the fleet {of_workload}, not for {name}")
    fleet = _fleet(name)
    made = make_workload(workload, seed=args.seed, capacity=fleet.capacity)
    return _Subject(
        made.jobs, f"the workload {workload} (seed {args.seed})", fleet.knowing(made.models), f"the fleet {name}"
    )


def _fleet(name: str) -> Fleet:
    return BUILT_IN[name] if name in BUILT_IN else read_fleet(Path(name))


def _export(args: argparse.Namespace, subject: _Subject) -> None:
    if args.export_trace is not None:
        write_trace(args.export_trace, subject.jobs)
        _note(f"wrote {len(subject.jobs)} jobs to {args.export_trace}")
    if args.export_fleet is not None:
        write_fleet(args.export_fleet, subject.fleet)
        _note(f"wrote the fleet to {args.export_fleet}")


def _note(text: str) -> None:
    """Say something that is no part of the figures, so that those can be read by a program."""
    print(text, file=sys.stderr)
