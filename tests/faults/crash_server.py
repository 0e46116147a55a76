"""Starts proxies that kill themselves: it forks one for each line on stdin, so that a life costs no imports.

A line is JSON: `data_dir`, `urls` by name, `max_concurrent`, and `point` and `side`: at the how manieth write to the
store or send to a backend it dies, `before` or `after` it. Points count from SIGUSR1 on. It answers on stdout with
`listening URL PID`, `armed`, and `ended STATUS`, which is -9 where the point was reached.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from comfyproxy import app
from comfyproxy.service import dispatcher, prober, sending
from comfyproxy.settings import HealthCheck, Nodes, NodeSettings, ServerSettings, Settings, StoreSettings
from comfyproxy.store.sqlite import SqliteStore
from comfyproxy.upstream import BackendClient

SENDS = ("submit", "delete_pending", "interrupt")
# Death is certain by a refused connection; silence is a machine that has too much to do.
CHECK = HealthCheck(interval=0.1, timeout=5.0, heartbeat_timeout=30.0, rise=1, fall=1000)


class Points:
    """Counts what happens, and kills this process when its point has come."""

    def __init__(self, point: int, side: str) -> None:
        self._point, self._side = point, side
        self.is_armed = False
        self._count = 0

    def arm(self) -> None:
        """Count from now on."""
        self.is_armed = True
        say("armed")

    def at(self, work: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        """Return `work` with a point at it."""

        async def pointed(*args: Any, **kwargs: Any) -> Any:
            if self.is_armed:
                self._count += 1
            is_here = self.is_armed and self._count == self._point
            if is_here and self._side == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            result = await work(*args, **kwargs)
            if is_here:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return pointed


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


async def live(wish: dict[str, Any]) -> None:
    """Be a proxy until SIGTERM."""
    points = Points(wish["point"], wish["side"])
    for owner, name in ((SqliteStore, "_write"), *((BackendClient, send) for send in SENDS)):
        setattr(owner, name, points.at(getattr(owner, name)))
    # Everything is tried again sooner: backends here answer at once or never.
    (sending.Sender.__init__.__kwdefaults__ or {})["look_again_s"] = 0.1
    dispatcher.RETRY_S = prober.EAGER_S = 0.1
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGUSR1, points.arm)
    nodes = [
        NodeSettings(node_id=name, url=url, max_concurrent=wish["max_concurrent"]) for name, url in wish["urls"].items()
    ]
    settings = Settings(
        nodes=Nodes(static_nodes=tuple(nodes), health_check=CHECK),
        server=ServerSettings(port=0, shutdown_timeout=1.0),
        store=StoreSettings(data_dir=Path(wish["data_dir"]), synchronous="normal"),
    )
    await app.serve(settings, stop, on_listening=lambda url: say(f"listening {url} {os.getpid()}"))


def main() -> None:
    """Serve until stdin ends; one proxy at a time."""
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            try:
                asyncio.run(live(json.loads(line)))
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
            os._exit(0)
        say(f"ended {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}")


if __name__ == "__main__":
    main()
