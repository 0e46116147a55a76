"""The last messages of a prompt, as its client must hear them: what came over the link, and what did not.

Events are news and may be lost with a connection; a history entry holds the same facts. Source of the messages' shape:
ComfyUI 0.25.0, `execution.py`, `main.py`.
"""

from collections.abc import Collection, Sequence
from typing import Any

from comfyproxy.core import messages, rawjson
from comfyproxy.core.jobs import Job
from comfyproxy.core.messages import OUTCOMES


def ending(
    job: Job, entry: bytes, *, heard: Sequence[str], executed: Collection[str], is_gapless: bool = False
) -> list[str]:
    """Return the messages that end a prompt.

    Args:
        entry: the history entry as clients see it.
        heard: those of its last messages that came from the backend; the outcome and the last are among them if all
            came.
        executed: the nodes of which the client has been told.
        is_gapless: nothing can have been lost on the way: an output that was not told was never to be (0.3.64 lists the
            cached ones of all nodes).
    """
    parsed = [messages.parse(text) for text in heard]
    has_final = bool(parsed) and parsed[-1] is not None and parsed[-1].is_final
    has_outcome = any(message is not None and message.event in OUTCOMES for message in parsed)
    if is_gapless and has_final and has_outcome:
        return list(heard)
    whole = rawjson.members(entry)
    told = [*_outputs(job, whole, executed), *(heard[:-1] if has_final else heard)]
    if not has_outcome:
        told += _outcome(whole)
    return [*told, heard[-1] if has_final else messages.final(job.prompt_id)]


def _outputs(job: Job, entry: dict[str, bytes], executed: Collection[str]) -> list[str]:
    """Return an `executed` for each output that the client has not been told of."""
    outputs = rawjson.decode(entry.get("outputs", b"{}"))
    meta = rawjson.decode(entry.get("meta", b"{}"))
    return [
        messages.encode(
            "executed",
            {
                "node": node_id,
                "display_node": _display_node(meta, node_id),
                "output": output,
                "prompt_id": job.prompt_id,
            },
        )
        for node_id, output in (outputs.items() if isinstance(outputs, dict) else ())
        if node_id not in executed
    ]


def _display_node(meta: Any, node_id: str) -> Any:
    of_node = meta.get(node_id) if isinstance(meta, dict) else None
    return of_node.get("display_node", node_id) if isinstance(of_node, dict) else node_id


def _outcome(entry: dict[str, bytes]) -> list[str]:
    status = rawjson.decode(entry.get("status", b"{}"))
    found = status.get("messages") if isinstance(status, dict) else None
    return [
        messages.encode(message[0], message[1])
        for message in (found if isinstance(found, list) else [])
        if isinstance(message, list) and len(message) == 2 and isinstance(message[0], str) and message[0] in OUTCOMES
    ]
