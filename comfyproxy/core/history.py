"""History entries: the backend's made the proxy's, and our own where no backend tells how a job ended.

An entry is `{prompt: [number, prompt_id, graph, extra_data, outputs], outputs, status, meta}` and may be megabytes
long; what need not change stays the bytes it came as. Source: ComfyUI 0.25.0, `execution.py` (`task_done`), `main.py`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from comfyproxy.core import rawjson
from comfyproxy.core.jobs import Job, JobState, Payload
from comfyproxy.core.outputs import prefix_outputs
from comfyproxy.core.prompts import SECRET_KEYS
from comfyproxy.core.spelling import unspelled

# What the proxy itself puts into a prompt's extra_data is nobody else's business.
OWN_PREFIX = "comfyproxy_"

MAX_MILLISECONDS = 1e15  # thirty thousand years


class Outcome(NamedTuple):
    """How an execution ended, as its entry tells; times are ms since the epoch on the backend's clock."""

    state: JobState  # SUCCEEDED, FAILED or CANCELLED
    started_ms: int | None
    ended_ms: int | None
    error: dict[str, Any] | None  # data of the `execution_error` message

    @property
    def is_out_of_memory(self) -> bool:
        """Whether the GPU's memory was too small (torch calls it so in all its versions)."""
        kind = self.error.get("exception_type") if self.error is not None else None
        return isinstance(kind, str) and kind.endswith("OutOfMemoryError")

    @property
    def message(self) -> str | None:
        """Why it failed, in one line for people."""
        if self.error is None:
            return None
        kind, text = self.error.get("exception_type"), str(self.error.get("exception_message", "")).strip()
        return f"{kind}: {text}" if kind else text


def build_entry(
    raw: bytes,
    *,
    job: Job,
    payload: Payload,
    client_graph: bool,
    spellings: Mapping[str, str],
    backend_prefix: str | None,
) -> bytes:
    """Make a backend's history entry the proxy's.

    Args:
        raw: the value under the prompt id in the backend's `/history/{id}`.
        client_graph: show the client's own graph, because the dispatched one had other file names in it. Else the
            backend's is kept: ComfyUI converts inputs in place, and history shows them converted.
        spellings: of models, the client's -> the backend's; an error shows the client's.
        backend_prefix: goes in front of the outputs' subfolders; None where outputs keep their names.

    Raises ValueError if `raw` is not an entry, or nested too deeply to be changed.
    """
    try:
        return _build_entry(raw, job, payload, client_graph, spellings, backend_prefix)
    except RecursionError as exc:
        raise ValueError("the entry is nested too deeply") from exc


def _build_entry(
    raw: bytes,
    job: Job,
    payload: Payload,
    client_graph: bool,
    spellings: Mapping[str, str],
    backend_prefix: str | None,
) -> bytes:
    entry = rawjson.members(raw)
    prompt = rawjson.items(entry.get("prompt", b"null"))
    if len(prompt) < 5:
        raise ValueError(f"not a history entry: {raw[:100]!r}")
    # A sixth item would be the secrets.
    graph = payload.graph if client_graph else prompt[2]
    head = rawjson.number(job.number), rawjson.encode(job.prompt_id), graph, _extra_data(prompt[3], job), prompt[4]
    entry["prompt"] = rawjson.array(head)
    if "status" in entry and rawjson.decode(prompt[1]) != job.prompt_id:
        entry["status"] = _translate(entry["status"], job.prompt_id)
    if spellings and "status" in entry:
        entry["status"] = unspelled(entry["status"], spellings)
    if backend_prefix is not None and "outputs" in entry:
        outputs = rawjson.decode(entry["outputs"])
        prefixed = prefix_outputs(outputs, backend_prefix)
        if prefixed is not outputs:
            entry["outputs"] = rawjson.encode(prefixed)
    return rawjson.obj(entry)


def failed_entry(job: Job, payload: Payload, *, message: str, exception_type: str, timestamp_ms: int) -> bytes:
    """Return the entry of a job that failed without its backend telling, such as by the backend's death."""
    event = failed_event(job, message=message, exception_type=exception_type, timestamp_ms=timestamp_ms)
    return _own_entry(job, payload, ["execution_error", event])


def failed_event(job: Job, *, message: str, exception_type: str, timestamp_ms: int) -> dict[str, Any]:
    """Return the data of the `execution_error` that goes with `failed_entry`."""
    return {
        "prompt_id": job.prompt_id,
        "node_id": "",
        "node_type": "",
        "executed": [],
        "exception_message": message,
        "exception_type": exception_type,
        "traceback": [],
        "current_inputs": {},
        "current_outputs": [],
        "timestamp": timestamp_ms,
    }


def cancelled_entry(job: Job, payload: Payload, *, timestamp_ms: int) -> bytes:
    """Return the entry of a job that was interrupted without its backend telling."""
    return _own_entry(job, payload, ["execution_interrupted", cancelled_event(job, timestamp_ms=timestamp_ms)])


def cancelled_event(job: Job, *, timestamp_ms: int) -> dict[str, Any]:
    """Return the data of the `execution_interrupted` that goes with `cancelled_entry`."""
    return {
        "prompt_id": job.prompt_id,
        "node_id": "",
        "node_type": "",
        "executed": [],
        "timestamp": timestamp_ms,
    }


def outcome(entry: bytes) -> Outcome:
    """Read how the execution ended, by the rules of the jobs API (0.25.0, `comfy_execution/jobs.py`).

    Raises ValueError if `entry` is no JSON.
    """
    status = rawjson.decode(rawjson.members(entry).get("status", b"null"))
    started_ms = ended_ms = error = None
    interrupted = False
    for name, data in _messages(status):
        if name == "execution_start":
            started_ms = _milliseconds(data)
        elif name in ("execution_success", "execution_error", "execution_interrupted"):
            ended_ms = _milliseconds(data)
            if name == "execution_error":
                error = data
            elif name == "execution_interrupted":
                interrupted = True
    state = JobState.SUCCEEDED
    if isinstance(status, dict) and status.get("status_str") == "error":
        state = JobState.CANCELLED if interrupted else JobState.FAILED
    return Outcome(state, started_ms, ended_ms, error)


def created_ms(job: Job) -> int:
    """Return what ComfyUI calls `create_time`: when the client handed the prompt in."""
    return round(job.created_s * 1000)


def own_extra_data(job: Job, payload: Payload, *, create_time: bool) -> bytes:
    """Return the extra_data that queue and history show of a job, in ComfyUI's order of keys."""
    extra_data = {key: raw for key, raw in rawjson.members(payload.extra_data).items() if not _is_hidden(key)}
    if job.client_id is not None:
        extra_data["client_id"] = rawjson.encode(job.client_id)
    if create_time:
        extra_data["create_time"] = rawjson.encode(created_ms(job))
    return rawjson.obj(extra_data)


def _own_entry(job: Job, payload: Payload, last: list[Any]) -> bytes:
    messages = [last]
    if job.started_s is not None:
        messages.insert(0, ["execution_start", {"prompt_id": job.prompt_id, "timestamp": int(job.started_s * 1000)}])
    prompt = (
        rawjson.number(job.number),
        rawjson.encode(job.prompt_id),
        payload.graph,
        own_extra_data(job, payload, create_time=True),
        rawjson.encode(job.outputs_to_execute),
    )
    status = {"status_str": "error", "completed": False, "messages": messages}
    return rawjson.obj(
        {"prompt": rawjson.array(prompt), "outputs": b"{}", "status": rawjson.encode(status), "meta": b"{}"}
    )


def _extra_data(raw: bytes, job: Job) -> bytes:
    """Put the client's id in the place of the link's, and the client's time in that of the dispatch."""
    extra_data = {key: value for key, value in rawjson.members(raw).items() if not _is_hidden(key)}
    if job.client_id is None:
        extra_data.pop("client_id", None)
    else:
        extra_data["client_id"] = rawjson.encode(job.client_id)
    if "create_time" in extra_data:
        # The backend's own is when it got the job, perhaps hours after the client had handed it in.
        extra_data["create_time"] = rawjson.encode(created_ms(job))
    return rawjson.obj(extra_data)


def _is_hidden(key: str) -> bool:
    return key in SECRET_KEYS or key.startswith(OWN_PREFIX)


def _translate(raw_status: bytes, prompt_id: str) -> bytes:
    status = rawjson.decode(raw_status)
    for _, data in _messages(status):
        if "prompt_id" in data:
            data["prompt_id"] = prompt_id
    return rawjson.encode(status)


def _messages(status: Any) -> list[tuple[str, dict[str, Any]]]:
    """Return (event, data) of the well-formed messages of a decoded status."""
    found = status.get("messages") if isinstance(status, dict) else None
    return [
        (message[0], message[1])
        for message in (found if isinstance(found, list) else [])
        if isinstance(message, list) and len(message) >= 2 and isinstance(message[1], dict)
    ]


def _milliseconds(data: dict[str, Any]) -> int | None:
    value = data.get("timestamp")
    # A server's clock, or what a custom node took for it: only what can be a time counts.
    return int(value) if isinstance(value, int | float) and abs(value) < MAX_MILLISECONDS else None
