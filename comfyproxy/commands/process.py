"""What a command that runs until it is told to stop needs: an event loop, signals, logging, readable failures."""

import asyncio
import errno
import json
import logging
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from comfyproxy.core.ports import StoreError
from comfyproxy.settings import LoggingSettings, ServerSettings


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's event loop; where there is none (Windows, PyPy), the standard library's."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def stop_on_signals(stop: asyncio.Event) -> None:
    """Set `stop` at SIGINT or SIGTERM; at the second one the process dies as if nobody had asked it to be polite."""
    loop = asyncio.get_running_loop()

    def asked(number: signal.Signals) -> None:
        stop.set()
        loop.remove_signal_handler(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, asked, number)
        except NotImplementedError:  # Windows: Ctrl-C is a KeyboardInterrupt
            continue


def set_up_logging(settings: LoggingSettings) -> None:
    """Write log lines to stderr."""
    handler = logging.StreamHandler()
    if settings.format == "json":
        handler.setFormatter(_JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.basicConfig(level=settings.level.upper(), handlers=[handler], force=True)


def reason(failure: BaseException, server: ServerSettings) -> str | None:
    """Say in a line why the proxy could not run; None if it is a bug, whose traceback tells more."""
    if isinstance(failure, BaseExceptionGroup):
        reasons = [reason(each, server) for each in failure.exceptions]
        return reasons[0] if len(reasons) == 1 else None
    if isinstance(failure, StoreError):
        return str(failure)
    if isinstance(failure, OSError):
        if failure.errno == errno.EADDRINUSE:
            return f"port {server.port} on {server.host} is taken; choose another with --port or server.port"
        where = f": {failure.filename}" if failure.filename else ""
        return f"cannot listen on {server.host}:{server.port}: {failure.strerror or failure}{where}"
    return None


def fail(command: str, message: str) -> int:
    """Say on stderr what is wrong and return the exit code for it."""
    print(f"comfyproxy {command}: {message}", file=sys.stderr)
    return 1


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)
