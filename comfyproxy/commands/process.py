"""What `serve` and `demo` share: they run until they are told to stop, log, and say in a line why they could not."""

import asyncio
import errno
import json
import logging
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

from comfyproxy.core.ports import StoreError
from comfyproxy.eventloop import loop_factory, stop_on_signals
from comfyproxy.settings import LoggingSettings, ServerSettings, Settings

log = logging.getLogger(__name__)

# Gets the event that is set when it shall stop, and what to call with the proxy's URL once that takes requests.
Work: TypeAlias = Callable[[asyncio.Event, Callable[[str], None]], Coroutine[Any, Any, None]]


def run_until_stopped(command: str, settings: Settings, work: Work) -> int:
    """Do the work until it ends, by SIGINT or SIGTERM at the latest; return the exit code.

    If it fails, stderr says why: in a line where somebody can help it, with a traceback where it is a bug.
    """
    set_up_logging(settings.logging)
    is_listening = False

    def listening(url: str) -> None:
        nonlocal is_listening
        is_listening = True
        print(f"comfyproxy listening on {url}", flush=True)

    async def main() -> None:
        stop = asyncio.Event()
        stop_on_signals(stop)
        await work(stop, listening)

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        try:
            runner.run(main())
        except KeyboardInterrupt:  # where signals cannot be handled in the loop
            return 0
        except Exception as exc:
            why = reason(exc, None if is_listening else settings.server)
            if why is None:
                log.critical("stopped by a bug", exc_info=exc)
            elif settings.logging.format == "json":  # whoever reads it does not expect a bare line
                log.critical("%s", why)
            else:
                fail(command, why)
            return 1
    return 0


def set_up_logging(settings: LoggingSettings) -> None:
    """Write log lines to stderr."""
    handler = logging.StreamHandler()
    if settings.format == "json":
        handler.setFormatter(_JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.basicConfig(level=settings.level.upper(), handlers=[handler], force=True)


def reason(failure: BaseException, starting: ServerSettings | None) -> str | None:
    """Say in a line why the proxy could not run; None if it is a bug, whose traceback tells more.

    Args:
        starting: where it tried to listen; None once it did, when the system's errors have other causes.
    """
    if isinstance(failure, BaseExceptionGroup):
        reasons = {reason(each, starting) for each in failure.exceptions}
        return reasons.pop() if len(reasons) == 1 else None
    if isinstance(failure, StoreError):
        return f"{failure} (--data-dir chooses the folder)"
    if isinstance(failure, OSError) and starting is not None:
        if failure.filename is not None:
            return f"{failure.filename}: {failure.strerror}"
        if failure.errno == errno.EADDRINUSE:
            return f"port {starting.port} on {starting.host} is taken; choose another with --port or server.port"
        if failure.errno == errno.EACCES:
            return f"port {starting.port} may not be used by this user; choose one above 1023 with --port"
        return f"cannot listen on {starting.host}:{starting.port}: {failure.strerror or failure}"
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
