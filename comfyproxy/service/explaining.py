"""Why a prompt goes where it goes, or nowhere: for people and their scripts."""

from typing import Any

from comfyproxy.core.errors import BadRequest
from comfyproxy.core.jobs import BackendId, Job
from comfyproxy.core.prompts import Envelope
from comfyproxy.core.scheduling.types import Outlook
from comfyproxy.service.board import Board
from comfyproxy.service.fleet import Backend, Fleet
from comfyproxy.service.live import LiveJob
from comfyproxy.service.placement import Placement


class Explainer:
    """Says of every backend whether it could run a prompt, and how soon."""

    def __init__(self, fleet: Fleet, board: Board, placement: Placement) -> None:
        self._fleet, self._board, self._placement = fleet, board, placement

    def of_job(self, prompt_id: str) -> dict[str, Any] | None:
        """Explain an unfinished job; None if there is none."""
        live = self._board.get(prompt_id)
        if live is None:
            return None
        state = "running" if live.is_running else str(live.job.state)
        said = {"prompt_id": prompt_id, "state": state, "backend": live.job.backend, "why": live.why or None}
        return said | self._explain(live)

    def of_prompt(self, envelope: Envelope) -> dict[str, Any]:
        """Explain a prompt that nobody has submitted; nothing comes of it. Raises BadRequest."""
        name = envelope.options.backend
        if name is not None and self._fleet.get(name) is None:
            raise BadRequest("unknown_backend", f"There is no backend called {name!r}")
        job = Job(
            prompt_id=envelope.prompt_id or "",
            number=0.0,
            client_id=envelope.client_id,
            fingerprint=envelope.fingerprint,
            created_s=0.0,
            pinned=BackendId(name) if name is not None else None,
        )
        live = LiveJob(job)
        self._placement.describe(live, envelope.payload, envelope.options)
        return self._explain(live)

    def _explain(self, live: LiveJob) -> dict[str, Any]:
        needs, outlooks = self._placement.needs(live), self._placement.outlooks(live)
        return {
            "strategy": self._placement.scheduler.strategy_name,
            "kind": live.kind,
            "priority": live.priority,
            "needs": {
                "node_classes": sorted(needs.classes),
                "choices": [
                    {"class": node_class, "input": name, "value": value}
                    for node_class, name, value in sorted(needs.choices)
                ],
                "models": sorted(needs.models),
                "capabilities": sorted(needs.capabilities),
                "backend": needs.pinned,
            },
            "can_run_somewhere": any(backend.offer.can(needs) for backend in self._fleet),
            "goes_to": self._placement.would_go_to(live),
            "backends": [self._of_backend(live, backend, outlooks[backend.id]) for backend in self._fleet],
        }

    def _of_backend(self, live: LiveJob, backend: Backend, outlook: Outlook) -> dict[str, Any]:
        missing = [str(lack) for lack in backend.offer.missing(self._placement.needs(live))]
        return {
            "name": backend.id,
            "state": backend.state,
            "can_run": not missing,
            "missing": missing,
            "kept_away": _kept_away(live, backend),
            "holds_models": outlook.holds_models,
            "expected": {
                "wait_s": round(outlook.wait_s, 3),
                "load_s": round(outlook.load_s, 3),
                "run_s": round(outlook.run_s, 3),
            },
        }


def _kept_away(live: LiveJob, backend: Backend) -> str | None:
    """Say why a job does not go to a backend although that could run it."""
    if backend.id in live.refused:
        return f"it refused the prompt: {live.refused[backend.id]}"
    if backend.id in live.ghosts:
        return "it may still have the prompt from before"
    if backend.id in live.unreachable:
        return "it could not be reached with the prompt just now"
    return None
