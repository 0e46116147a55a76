"""`comfyproxy serve`."""

import argparse
import asyncio
import logging
import os
import sys

from comfyproxy import app
from comfyproxy.commands.process import fail, loop_factory, reason, set_up_logging, stop_on_signals
from comfyproxy.settings import BadSettings, Settings, load, warnings

log = logging.getLogger(__name__)

NO_BACKEND = """there is no backend to send prompts to; name one
  comfyproxy serve --backend http://gpu-a:8188 --backend http://gpu-b:8188
or list them under nodes.static_nodes in a file for --config; `comfyproxy demo` runs with simulated ones"""


def run(args: argparse.Namespace) -> int:
    """Run the proxy until SIGINT or SIGTERM; return the exit code."""
    overrides = {
        "server.host": args.host,
        "server.port": args.port,
        "store.data_dir": args.data_dir,
        "logging.level": args.log_level,
    }
    try:
        settings = load(args.config, backends=args.backend, overrides=overrides, environ=os.environ)
    except BadSettings as exc:
        print(exc, file=sys.stderr)
        return 1
    if not settings.nodes.static_nodes:
        return fail("serve", NO_BACKEND)
    set_up_logging(settings.logging)
    for line in warnings(settings):
        log.warning("%s", line)
    return run_proxy(settings)


def run_proxy(settings: Settings) -> int:
    """Serve with these settings; return the exit code."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        try:
            runner.run(_serve(settings))
        except KeyboardInterrupt:  # where signals cannot be handled in the loop
            return 0
        except Exception as exc:
            if (why := reason(exc, settings.server)) is not None:
                return fail("serve", why)
            log.critical("stopped by a bug", exc_info=exc)
            return 1
    return 0


async def _serve(settings: Settings) -> None:
    stop = asyncio.Event()
    stop_on_signals(stop)
    await app.serve(settings, stop, on_listening=lambda url: print(f"comfyproxy listening on {url}", flush=True))
