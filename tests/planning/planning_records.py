"""What a proxy would have recorded of a simulated run."""

import json
from collections.abc import Iterator
from pathlib import Path

from comfyproxy.core.jobs import Job, JobState, Payload
from comfyproxy.core.jobs_api import summarise
from comfyproxy.planning.engine import Record, Run
from comfyproxy.store.sqlite import SqliteStore

BEGAN_S = 1_700_000_000.0
STEPS = {"draft": 4, "portrait": 20, "landscape": 30, "hires": 50}


def graph_of(record: Record, seed: int) -> bytes:
    """Return a graph that tells the job's model and kind, and differs in what does not matter."""
    graph = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": f"{record.job.model}.safetensors"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": f"picture {seed}", "clip": ["1", 1]}},
        "3": {"class_type": "KSampler", "inputs": {"seed": seed, "steps": STEPS[record.job.kind], "model": ["1", 0]}},
    }
    return json.dumps(graph).encode()


def recorded(run: Run) -> Iterator[tuple[Job, Payload, bytes]]:
    """Yield the jobs in the order in which they ended, with their payloads and entries."""
    for index, record in sorted(enumerate(run.records), key=lambda found: found[1].end_s):
        graph = graph_of(record, index)
        job = Job(
            prompt_id=f"p{index}",
            number=float(-index - 1 if record.job.front else index + 1),
            client_id=record.job.client or None,
            fingerprint="f",
            created_s=BEGAN_S + record.job.at_s,
            state=JobState.SUCCEEDED,
            backend=record.backend,
            started_s=BEGAN_S + record.start_s,
            finished_s=BEGAN_S + record.end_s + 0.5,  # when the proxy had it all
        )
        times = [("execution_start", record.start_s), ("execution_success", record.end_s)]
        messages = [[name, {"prompt_id": job.prompt_id, "timestamp": (BEGAN_S + at) * 1000}] for name, at in times]
        status = {"status_str": "success", "completed": True, "messages": messages}
        prompt = b'[%d, "%s", %s, {}, ["3"]]' % (job.number, job.prompt_id.encode(), graph)
        entry = b'{"prompt": %s, "outputs": {}, "status": %s}' % (prompt, json.dumps(status).encode())
        yield job, Payload(graph=graph), entry


async def store_with(path: Path, run: Run) -> SqliteStore:
    """Return an open store in which the run's jobs have ended."""
    store = SqliteStore(path, synchronous="normal")
    await store.open()
    for job, payload, entry in recorded(run):
        await store.insert(unfinished(job), payload)
        await store.settle(job, entry, summarise(job, entry))
    return store


def unfinished(job: Job) -> Job:
    """Return a job as it was when it came."""
    return Job(
        prompt_id=job.prompt_id,
        number=job.number,
        client_id=job.client_id,
        fingerprint=job.fingerprint,
        created_s=job.created_s,
    )
