"""What the proxy answers to a client's feature flags."""

from typing import Any

from comfyproxy.core.errors import NoBackend
from comfyproxy.service.fleet import Fleet

# Text frames travel in the form that servers send to links, which do not ask for this.
_NOT_OURS = ("supports_progress_text_metadata",)


class ServerFeatures:
    """The home backend's features, less those of which the proxy does not keep the promise."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def __call__(self) -> dict[str, Any]:
        """Return the flags; of a server without any, only what the proxy itself can do."""
        try:
            features = self._fleet.home().features
        except NoBackend:
            features = {}
        kept = {name: value for name, value in features.items() if name not in _NOT_OURS}
        return kept or {"supports_preview_metadata": True}
