"""What `/queue` shows of unfinished jobs, in ComfyUI's shape and order."""

import heapq
from collections.abc import Iterable

from comfyproxy.core import rawjson
from comfyproxy.core.history import own_extra_data
from comfyproxy.core.jobs import Job, Payload


def queue_item(job: Job, payload: Payload, *, create_time: bool) -> bytes:
    """Return `[number, prompt_id, graph, extra_data, outputs_to_execute]`; the graph is not decoded.

    Args:
        create_time: whether to show it, as servers from 0.4 on do.
    """
    return rawjson.array(
        (
            rawjson.number(job.number),
            rawjson.encode(job.prompt_id),
            payload.graph,
            own_extra_data(job, payload, create_time=create_time),
            rawjson.encode(job.outputs_to_execute),
        )
    )


def in_queue_order(jobs: Iterable[Job]) -> list[Job]:
    """Order pending jobs as `queue_pending` does: that of a heap to which they were added one by one.

    Args:
        jobs: in the order in which they came.

    The first is the next to run; whoever wants more sorts by number, as the web page does. Source: ComfyUI 0.25.0,
    `execution.py` (`PromptQueue.put`, `get_current_queue_volatile`).
    """
    heap: list[tuple[float, str, Job]] = []
    for job in jobs:
        # Ids are unique, so two jobs themselves are never compared.
        heapq.heappush(heap, (job.number, job.prompt_id, job))
    return [job for *_, job in heap]
