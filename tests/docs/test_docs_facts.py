"""What the pages say of the code is so: series, states, faults, kinds of errors, log lines."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from docs_support import ROOT, blocks, rows, spans, text_of
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric

from comfyproxy.core.jobs import BackendId, InvalidTransition, Job, JobState, advance
from comfyproxy.core.prompts import MARK
from comfyproxy.metrics import Metrics
from comfyproxy.simulator.control import NAMES

A = BackendId("gpu-a")
JOB = Job(prompt_id="p", number=0, client_id=None, fingerprint="", created_s=1, started_s=2, finished_s=3, backend=A)
OPERATIONS = "docs/operations.md"

PLACE = re.compile(r"%(?:\.\d+)?[a-z]")  # of a value in a log message

# What a family's samples end with; the first is how the series is called.
ENDINGS = {"counter": ("_total",), "gauge": ("",), "histogram": ("", "_bucket", "_count", "_sum")}


@dataclass
class _Settings:
    max_concurrent: int = 2


@dataclass
class _Backend:
    id: BackendId = A
    state: str = "ready"
    is_ready: bool = True
    in_flight: set[str] = field(default_factory=set)
    queue_remaining: int = 0
    settings: _Settings = field(default_factory=_Settings)
    link: None = None


@dataclass
class _Board:
    count: int = 0
    waiting_count: int = 0


def families() -> dict[str, Metric]:
    """Return every family of our own, each with a sample, by the name under which the series is told."""
    metrics = Metrics(CollectorRegistry())
    metrics.submitted("accepted")
    metrics.dispatched(A, "accepted")
    metrics.finished(JOB)
    metrics.failed_over(A)
    metrics.upstream_error(A, "BadAnswer")
    metrics.relayed(A)
    metrics.probed(A, True, 0.1)
    metrics.requested("/ws", "GET", 200, 0.1)
    metrics.watch([_Backend()], _Board(), lambda: 0)
    found = {}
    for family in metrics.registry.collect():
        if family.name.startswith("comfyproxy_"):
            ending = "_info" if family.type == "info" else ENDINGS[family.type][0]
            found[family.name + ending] = family
    return found


def labels_of(family: Metric) -> set[str]:
    return {label for sample in family.samples for label in sample.labels} - {"le"}


def test_every_series_is_told_with_its_type_and_labels() -> None:
    told = {
        row[0].strip("`"): (row[1], set(spans(row[2])))
        for row in rows(text_of(OPERATIONS))
        if row[0].startswith("`comfyproxy_")
    }
    shown = {"info": "gauge"}
    assert told == {
        name: (shown.get(family.type, family.type), labels_of(family)) for name, family in families().items()
    }


def test_every_series_that_is_named_exists() -> None:
    known = {"comfyproxy_build_info", MARK}
    for family in families().values():
        known |= {family.name + ending for ending in ENDINGS.get(family.type, ())}
    for page in ("README.md", OPERATIONS):
        named = set(re.findall(r"\bcomfyproxy_[a-z_]+", text_of(page)))
        assert named
        assert named <= known, page


def test_an_alert_looks_at_labels_that_there_are() -> None:
    (alerts,) = [block.text for block in blocks("yaml") if "groups:" in block.text]
    for name, matchers in re.findall(r"(comfyproxy_[a-z_]+)\{([^}]*)\}", alerts):
        assert set(re.findall(r"(\w+)=", matchers)) <= labels_of(families()[name])


def test_the_table_of_transitions_is_that_of_the_code() -> None:
    told = set()
    for row in rows(text_of("docs/job-life.md")):
        states = [cell.strip("`") for cell in row[:2]]
        if all(state in set(JobState) for state in states) and len(states) == 2:
            told.add(tuple(states))
    allowed = {(str(before), str(after)) for before in JobState for after in JobState if _may(before, after)}
    assert told == allowed


def _may(before: JobState, after: JobState) -> bool:
    try:
        advance(Job(prompt_id="p", number=0, client_id=None, fingerprint="", created_s=0, state=before), after)
    except InvalidTransition:
        return False
    return True


def test_every_fault_is_told() -> None:
    told = {span for row in rows(text_of("docs/simulator.md")) for span in spans(row[0])}
    assert set(NAMES) <= told


def source() -> str:
    return "\n".join(path.read_text("utf-8") for path in sorted((ROOT / "comfyproxy").rglob("*.py")))


def test_every_kind_of_error_exists() -> None:
    code = source()
    kinds = [match[1] for row in rows(text_of("README.md")) if (match := re.match(r"\d{3} `(\w+)`", row[0]))]
    types = [span for row in rows(text_of("docs/job-life.md")) for span in re.findall(r"^`([A-Z]\w+)`$", row[0])]
    assert kinds
    assert types
    for name in [*kinds, *types]:
        assert f'"{name}"' in code, name


def logged() -> Iterator[tuple[str, str]]:
    """Yield (level, format) of every log call."""
    for path in sorted((ROOT / "comfyproxy").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id in ("log", "_log")
                and isinstance(first := node.args[0], ast.Constant)
            ):
                yield node.func.attr, str(first.value)


def test_every_log_line_that_is_told_is_written_at_that_level() -> None:
    # One that is hardly more than blanks would pass for any line.
    calls = [(level, text) for level, text in logged() if len(re.findall(r"[a-z]", PLACE.sub("", text))) > 1]
    table = text_of(OPERATIONS).partition("## Log lines")[2].partition("\n## ")[0]
    told = [row for row in rows(table) if row[0].startswith("`")]
    assert len(told) > 20
    for message, levels, *_ in told:
        line = message.strip("`")
        assert set(levels.split(", ")) <= {level for level, text in calls if _is_of(line, text)}, message


def _is_of(line: str, text: str) -> bool:
    """Whether a line that is told is one that is written so; where it ends in `: …` it may be cut short."""
    pattern = "(?:.+)".join(map(re.escape, PLACE.split(text)))
    if re.fullmatch(pattern, line):
        return True
    return line.endswith(": …") and PLACE.sub("…", text).startswith(line.removesuffix("…"))


def test_an_alert_looks_at_outcomes_that_there_are() -> None:
    (alerts,) = [block.text for block in blocks("yaml") if "groups:" in block.text]
    outcomes = re.findall(r'comfyproxy_prompts_submitted_total\{outcome="(\w+)"', alerts)
    assert outcomes
    for outcome in outcomes:
        assert f'"{outcome}"' in source(), outcome
