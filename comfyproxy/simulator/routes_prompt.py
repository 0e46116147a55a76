"""Routes of prompts: submit, queue, history, interrupt, jobs, and the websocket.

Source: ComfyUI 0.25.0 and 0.3.64, `server.py`; the ways to cancel a job are those of 0.26.
"""

import json
import uuid
from typing import Any

from aiohttp import web

from .faults import cut
from .jobs import STATUSES, Job, history_job, queue_job, sort_key
from .process import Process
from .queue import Item


class PromptRoutes:
    """Handlers of one process."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def table(self) -> list[web.RouteDef]:
        """Return the routes that exist bare and under /api."""
        return [
            web.get("/ws", self.websocket),
            web.get("/prompt", self.get_prompt),
            web.post("/prompt", self.post_prompt),
            web.get("/queue", self.get_queue),
            web.post("/queue", self.post_queue),
            web.get("/history", self.get_history),
            web.get("/history/{prompt_id}", self.get_history_entry),
            web.post("/history", self.post_history),
            web.post("/interrupt", self.interrupt),
            web.post("/free", self.free),
        ]

    def api_table(self) -> list[web.RouteDef]:
        """Return the routes that exist under /api only, with their whole path."""
        if not self._process.profile.has_jobs_api:
            return []
        routes = [web.get("/api/jobs", self.get_jobs), web.get("/api/jobs/{job_id}", self.get_job)]
        if self._process.profile.has_cancel_routes:
            routes += [
                web.post("/api/jobs/cancel", self.cancel_jobs),
                web.post("/api/jobs/{job_id}/cancel", self.cancel_job),
            ]
        return routes

    async def websocket(self, request: web.Request) -> web.WebSocketResponse:
        return await self._process.sockets.serve(request, self._process.greeting, self._process.features)

    async def get_prompt(self, request: web.Request) -> web.Response:
        return web.json_response(self._process.exec_info())

    async def post_prompt(self, request: web.Request) -> web.Response:
        process = self._process
        if process.faults.take("cut_before_accepting"):
            cut(request.transport)
            return web.Response()
        body = await request.json()
        number = process.next_number(body)
        if "prompt" not in body:
            message = "No prompt provided"
            return _refused({"type": "no_prompt", "message": message, "details": message, "extra_info": {}})
        prompt_id = process.mint_id() if process.faults.mint_prompt_ids else self._prompt_id(body)
        if prompt_id is None:
            return _refused(
                {
                    "type": "invalid_prompt_id",
                    "message": "prompt_id must be a valid UUID",
                    "details": "prompt_id must be a UUID string in canonical lowercase hyphenated form; "
                    "omit it to let the server generate one",
                    "extra_info": {},
                }
            )
        graph = body["prompt"]
        verdict = process.judge(graph, body.get("partial_execution_targets"))
        extra_data = body.get("extra_data", {})
        if "client_id" in body:
            extra_data["client_id"] = body["client_id"]
        if process.profile.stamps_create_time and "comfy_usage_source" not in extra_data:
            source = request.headers.get("Comfy-Usage-Source")
            if source:
                extra_data["comfy_usage_source"] = source
        if verdict.error is not None:
            return _refused(verdict.error, verdict.node_errors)
        process.accept(number, prompt_id, graph, extra_data, verdict.outputs)
        if process.faults.take("cut_after_accepting"):
            cut(request.transport)
            return web.Response()
        return web.json_response({"prompt_id": prompt_id, "number": number, "node_errors": verdict.node_errors})

    def _prompt_id(self, body: dict[str, Any]) -> str | None:
        """Return the id for a prompt, or None if the caller's own is not allowed."""
        if not self._process.profile.demands_uuid:
            return str(body["prompt_id"]) if "prompt_id" in body else self._process.mint_id()
        asked = body.get("prompt_id")
        if asked is None:
            return self._process.mint_id()
        try:
            canonical = isinstance(asked, str) and str(uuid.UUID(asked)) == asked
        except ValueError:
            return None
        return asked if canonical else None

    async def get_queue(self, request: web.Request) -> web.Response:
        queue = self._process.queue
        return web.json_response({"queue_running": _shown(queue.running()), "queue_pending": _shown(queue.waiting())})

    async def post_queue(self, request: web.Request) -> web.Response:
        body = await request.json()
        if "clear" in body and body["clear"]:  # noqa: RUF019  (a list is fine, too)
            self._process.queue.clear()
        if "delete" in body:
            for prompt_id in body["delete"]:
                self._process.queue.delete(prompt_id)
        return web.Response()

    async def get_history(self, request: web.Request) -> web.Response:
        query = request.rel_url.query
        max_items = int(query["max_items"]) if "max_items" in query else None
        offset = int(query["offset"]) if "offset" in query else -1
        return web.json_response(self._process.history.page(max_items, offset))

    async def get_history_entry(self, request: web.Request) -> web.Response:
        return web.json_response(self._process.history.entry(request.match_info["prompt_id"]))

    async def post_history(self, request: web.Request) -> web.Response:
        body = await request.json()
        if "clear" in body and body["clear"]:  # noqa: RUF019  (a list is fine, too)
            self._process.history.clear()
        if "delete" in body:
            for prompt_id in body["delete"]:
                self._process.history.delete(prompt_id)
        return web.Response()

    async def interrupt(self, request: web.Request) -> web.Response:
        try:
            body = await request.json()
        except json.JSONDecodeError:
            body = {}
        prompt_id = body.get("prompt_id")
        if not prompt_id or any(item[1] == prompt_id for item in self._process.queue.running()):
            self._process.executor.interrupt()
        return web.Response()

    async def free(self, request: web.Request) -> web.Response:
        body = await request.json()
        for flag in ("unload_models", "free_memory"):
            if body.get(flag, False):
                self._process.queue.set_flag(flag, body[flag])
        return web.Response()

    async def get_jobs(self, request: web.Request) -> web.Response:
        query = request.rel_url.query
        wanted = [part.strip().lower() for part in query.get("status", "").split(",") if part.strip()]
        unknown = [status for status in wanted if status not in STATUSES]
        if unknown:
            return _bad(f"Invalid status value(s): {', '.join(unknown)}. Valid values: {', '.join(STATUSES)}")
        sort_by = query.get("sort_by", "created_at").lower()
        if sort_by not in ("created_at", "execution_duration"):
            return _bad("sort_by must be 'created_at' or 'execution_duration'")
        sort_order = query.get("sort_order", "desc").lower()
        if sort_order not in ("asc", "desc"):
            return _bad("sort_order must be 'asc' or 'desc'")
        limit = None
        if "limit" in query:
            try:
                limit = int(query["limit"])
            except ValueError:
                return _bad("limit must be an integer")
            if limit <= 0:
                return _bad("limit must be a positive integer")
        try:
            offset = max(0, int(query.get("offset", "0")))
        except ValueError:
            return _bad("offset must be an integer")
        # `status=,` names no status and so finds nothing; no `status` at all finds everything.
        jobs = self._jobs(wanted if query.get("status") else list(STATUSES))
        workflow_id = query.get("workflow_id")
        if workflow_id:
            jobs = [job for job in jobs if job.get("workflow_id") == workflow_id]
        jobs.sort(key=lambda job: sort_key(job, sort_by), reverse=sort_order == "desc")
        page = jobs[offset:] if limit is None else jobs[offset : offset + limit]
        pagination = {
            "offset": offset,
            "limit": limit,
            "total": len(jobs),
            "has_more": offset + len(page) < len(jobs),
        }
        return web.json_response({"jobs": page, "pagination": pagination})

    def _jobs(self, wanted: list[str]) -> list[Job]:
        queue = self._process.queue
        jobs: list[Job] = []
        if "in_progress" in wanted:
            jobs += [queue_job(item, "in_progress") for item in queue.running()]
        if "pending" in wanted:
            jobs += [queue_job(item, "pending") for item in queue.waiting()]
        if {"completed", "failed", "cancelled"} & set(wanted):
            ended = (history_job(prompt_id, entry) for prompt_id, entry in self._process.history.page().items())
            jobs += [job for job in ended if job["status"] in wanted]
        return jobs

    async def get_job(self, request: web.Request) -> web.Response:
        job_id = request.match_info["job_id"]
        entry = self._process.history.entry(job_id)
        if entry:
            return web.json_response(history_job(job_id, entry[job_id], full=True))
        queue = self._process.queue
        for items, status in ((queue.running(), "in_progress"), (queue.waiting(), "pending")):
            for item in items:
                if item[1] == job_id:
                    return web.json_response(queue_job(item, status))
        return web.json_response({"error": "Job not found"}, status=404)

    async def cancel_job(self, request: web.Request) -> web.Response:
        return web.json_response({"cancelled": self._cancel(request.match_info["job_id"])})

    async def cancel_jobs(self, request: web.Request) -> web.Response:
        job_ids = (await request.json())["job_ids"]
        cancelled = [self._cancel(job_id) for job_id in job_ids]
        return web.json_response({"cancelled": any(cancelled)})

    def _cancel(self, job_id: str) -> bool:
        """Take a prompt out of the queue, or interrupt it if it runs; tell whether it did either."""
        if self._process.queue.delete(job_id):
            return True
        if any(item[1] == job_id for item in self._process.queue.running()):
            self._process.executor.interrupt()
            return True
        return False


def _shown(items: list[Item]) -> list[tuple[Any, ...]]:
    """Leave the secrets out."""
    return [item[:5] for item in items]


def _refused(error: dict[str, Any], node_errors: dict[str, Any] | None = None) -> web.Response:
    return web.json_response({"error": error, "node_errors": node_errors or {}}, status=400)


def _bad(error: str) -> web.Response:
    return web.json_response({"error": error}, status=400)
