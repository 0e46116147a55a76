"""The errors of comfyproxy, and the shape in which clients see them.

ComfyproxyError
├── RequestError            the client's request is wrong or cannot be served; has a status and ComfyUI's JSON shape
│   ├── BadRequest          400
│   ├── NoBackend           503: no backend is ready
│   ├── BackendUnavailable  503: the backend that would have to answer does not listen
│   ├── UpstreamFailed      502: it was asked and failed to answer
│   ├── QueueFull           429
│   └── ShuttingDown        503
├── StoreError              see core/ports.py
└── UpstreamError           a request to a backend failed
    ├── NotDelivered        the backend has not read the request: safe to send elsewhere
    └── DeliveryUnknown     it may have read it: look before doing anything
"""

from typing import Any


class ComfyproxyError(Exception):
    """Whatever comfyproxy raises on purpose."""


class RequestError(ComfyproxyError):
    """A request that ends with an error towards the client."""

    status = 500
    kind = "internal_error"
    retry_after_s: int | None = None

    def __init__(self, message: str, *, details: str = "", extra_info: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message, self.details, self.extra_info = message, details, extra_info or {}

    def body(self) -> dict[str, Any]:
        """Return the answer's JSON as ComfyUI shapes an error of POST /prompt (0.25.0, `server.py`)."""
        error = {
            "type": self.kind,
            "message": self.message,
            "details": self.details,
            "extra_info": self.extra_info,
        }
        return {"error": error, "node_errors": {}}


class BadRequest(RequestError):
    """The request itself is wrong; `kind` says how."""

    status = 400

    def __init__(self, kind: str, message: str, *, details: str = "") -> None:
        super().__init__(message, details=details)
        self.kind = kind


class NoBackend(RequestError):
    """No backend is there to serve the request."""

    status = 503
    kind = "no_backend_available"
    retry_after_s = 5


class BackendUnavailable(RequestError):
    """The backend that would have to answer cannot be reached; the request was not read."""

    status = 503
    kind = "backend_unavailable"
    retry_after_s = 5


class UpstreamFailed(RequestError):
    """A backend got the request and gave no usable answer; whether it acted on it is not known."""

    status = 502
    kind = "backend_failed"


class QueueFull(RequestError):
    """As many jobs are unfinished as the configuration allows."""

    status = 429
    kind = "queue_full"
    retry_after_s = 10


class SocketsFull(RequestError):
    """As many websockets are open as the configuration allows."""

    status = 503
    kind = "too_many_sockets"
    retry_after_s = 10


class ShuttingDown(RequestError):
    """The proxy is stopping and takes no new prompts."""

    status = 503
    kind = "shutting_down"
    retry_after_s = 5


class UpstreamError(ComfyproxyError):
    """A request to a backend failed."""


class NotDelivered(UpstreamError):
    """The backend has not read the request; it may be sent elsewhere."""


class ConnectionRefused(NotDelivered):
    """Nothing listens there: the proof that the server is dead."""


class DeliveryUnknown(UpstreamError):
    """The backend may have read the request: look, never send again on a doubt."""


class BadAnswer(UpstreamError):
    """The backend answered with something ComfyUI would not say."""


class UpgradeRefused(BadAnswer):
    """The backend does not open a websocket at that path; `status` is what it said instead."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
