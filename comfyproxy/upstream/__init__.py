"""HTTP and websocket towards one backend."""

from .client import BackendClient
from .link import BackendLink
from .session import open_session

__all__ = ["BackendClient", "BackendLink", "open_session"]
