"""`comfyproxy serve`."""

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Callable

from comfyproxy import app
from comfyproxy.commands.process import fail, run_until_stopped
from comfyproxy.eventloop import reload_on_hangup
from comfyproxy.settings import BadSettings, Problem, Settings, load, warnings

log = logging.getLogger(__name__)

NO_BACKEND = """there is no backend to send prompts to; name one
  comfyproxy serve --backend http://gpu-a:8188 --backend http://gpu-b:8188
or list them under nodes.static_nodes in a file for --config; `comfyproxy demo` runs with simulated ones"""


def run(args: argparse.Namespace) -> int:
    """Run the proxy until SIGINT or SIGTERM, reading the configuration again at SIGHUP; return the exit code."""
    overrides = {
        "server.host": args.host,
        "server.port": args.port,
        "store.data_dir": args.data_dir,
        "logging.level": args.log_level,
    }

    def read() -> Settings:
        return load(args.config, backends=args.backend, overrides=overrides, environ=os.environ)

    def read_again() -> Settings:
        again = read()
        if not again.nodes.static_nodes:
            raise BadSettings([Problem(str(args.config), "there would be no backend left", "nodes.static_nodes")])
        return again

    try:
        settings = read()
    except BadSettings as exc:
        print(exc, file=sys.stderr)
        return 1
    if not settings.nodes.static_nodes:
        return fail("serve", NO_BACKEND)

    async def work(stop: asyncio.Event, listening: Callable[[str], None]) -> None:
        for line in warnings(settings):
            log.warning("%s", line)
        wanted = asyncio.Event()
        reload_on_hangup(wanted, stop)
        await app.serve(settings, stop, on_listening=listening, read=read_again, reload_wanted=wanted)

    return run_until_stopped("serve", settings, work)
