"""`comfyproxy serve`."""

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Callable

from comfyproxy import app
from comfyproxy.commands.process import fail, run_until_stopped
from comfyproxy.settings import BadSettings, load, warnings

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

    async def work(stop: asyncio.Event, listening: Callable[[str], None]) -> None:
        for line in warnings(settings):
            log.warning("%s", line)
        await app.serve(settings, stop, on_listening=listening)

    return run_until_stopped("serve", settings, work)
