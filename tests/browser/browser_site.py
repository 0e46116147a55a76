"""What a browser is pointed at: the whole proxy in front of simulated servers, or any ComfyUI that is named."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from proxying import Fleet, Proxy, running_proxy

from comfyproxy.settings import HealthCheck

CHECKPOINT = "v1-5-pruned-emaonly-fp16.safetensors"
_HURRY = 10_000

# Machines that run tests are busy: a slow answer is no sign of death here, a refused connection is.
_HEALTH_CHECK = HealthCheck(interval=0.5, timeout=10.0, heartbeat_timeout=60.0, rise=1, fall=3)


class Site:
    """A server, or several behind a proxy.

    Attributes:
        long_s: how long a prompt takes, in its own seconds, that is to outlast what a person does meanwhile.
    """

    def __init__(self, url: str, fleet: Fleet | None = None, proxy: Proxy | None = None) -> None:
        self.url = url.rstrip("/")
        self._fleet, self._proxy = fleet, proxy
        self.long_s = 40.0 if fleet else 15.0

    @property
    def fleet(self) -> Fleet:
        """The simulated servers. Raises RuntimeError if the server is not ours."""
        if self._fleet is None:
            raise RuntimeError("this server is not ours")
        return self._fleet

    @property
    def proxy(self) -> Proxy:
        """The proxy in front of them. Raises RuntimeError if the server is not ours."""
        if self._proxy is None:
            raise RuntimeError("this server is not ours")
        return self._proxy

    @property
    def is_ours(self) -> bool:
        return self._fleet is not None

    def hurry(self) -> None:
        """Bring what runs to its end, where that is in our power."""
        for backend in self._fleet.backends.values() if self._fleet else ():
            backend.hurry(_HURRY)


@asynccontextmanager
async def proxied_site(version: str, frontend: Path, data_dir: Path) -> AsyncIterator[Site]:
    """Run the proxy in front of three simulated servers, each with room for one prompt."""
    fleet = Fleet("a", "b", "c", speed=1.0, version=version, frontend=frontend, checkpoints=(CHECKPOINT,))
    async with fleet, running_proxy(fleet, data_dir, max_concurrent=1, health_check=_HEALTH_CHECK) as proxy:
        yield Site(proxy.url, fleet, proxy)
