"""What `/queue` shows."""

import json

from recorded import job_of, payload_of, recorded

from comfyproxy.core.jobs import Payload
from comfyproxy.core.queue_items import in_queue_order, queue_item


def test_a_queue_item_is_that_of_a_real_server() -> None:
    for item in recorded("queue")["queue_pending"]:
        entry = {"prompt": item}
        assert json.loads(queue_item(job_of(entry), payload_of(entry), create_time=True)) == item


def test_older_servers_show_no_create_time() -> None:
    entry = {"prompt": recorded("queue")["queue_pending"][0]}
    shown = json.loads(queue_item(job_of(entry), payload_of(entry), create_time=False))[3]
    assert shown == {"client_id": "conf-q"}


def test_the_graph_stays_as_it_came() -> None:
    graph = b'{ "1" : {"x": NaN} }'
    job = job_of({"prompt": recorded("queue")["queue_pending"][0]})
    assert graph in queue_item(job, Payload(graph=graph), create_time=True)


def test_pending_jobs_come_in_the_order_of_a_real_server() -> None:
    shown = [item[1] for item in recorded("queue")["queue_pending"]]
    jobs = [job_of({"prompt": item}) for item in recorded("queue")["queue_pending"]]
    came = sorted(jobs, key=lambda job: job.created_s)
    assert [job.prompt_id for job in came] != shown
    assert [job.prompt_id for job in in_queue_order(came)] == shown
