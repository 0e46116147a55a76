"""The command `comfyproxy`: its subcommands and their options. What they do is in `commands/`."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from comfyproxy import __version__
from comfyproxy.commands import check, demo, serve
from comfyproxy.simulator import command as simulate

CONFIG_VARIABLE = "COMFYPROXY_CONFIG"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 1 failed (one message on stderr says why), 2 misused."""
    args = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = args.run
    try:
        return run(args)
    except BrokenPipeError:
        # Whoever read the output has gone (`comfyproxy check f | head`); Python would complain when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="comfyproxy",
        description="One endpoint in front of many ComfyUI servers.",
        epilog="`comfyproxy COMMAND --help` tells the options of a command.",
    )
    parser.add_argument("--version", action="version", version=f"comfyproxy {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    one = commands.add_parser(
        "serve",
        help="run the proxy",
        description="Run the proxy. Every setting of the file can be overridden by an environment variable "
        "(COMFYPROXY_SERVER_PORT for server.port), and both by these options.",
    )
    one.add_argument("--config", type=Path, default=_config(), metavar="FILE", help=f"settings ({CONFIG_VARIABLE})")
    one.add_argument(
        "--backend",
        action="append",
        default=[],
        metavar="[NAME=]URL",
        help="a ComfyUI server; may be given many times, and then replaces the nodes of the file",
    )
    one.add_argument("--host", metavar="H", help="address to listen on (127.0.0.1; 0.0.0.0: all)")
    one.add_argument("--port", type=int, metavar="P", help="port to listen on (8188; 0: any)")
    one.add_argument("--data-dir", type=Path, metavar="DIR", help="where jobs are kept (data)")
    one.add_argument("--log-level", metavar="LEVEL", help="debug, info, warning or error (info)")
    one.set_defaults(run=serve.run)

    one = commands.add_parser(
        "check",
        help="check a configuration file",
        description="Print what a configuration file says, defaults included, or everything that is wrong with it.",
    )
    one.add_argument("file", type=Path, metavar="FILE")
    one.set_defaults(run=check.run)

    one = commands.add_parser(
        "simulate", help="run a simulated ComfyUI server", description="Run a simulated ComfyUI server."
    )
    simulate.add_arguments(one)
    one.set_defaults(run=simulate.run)

    one = commands.add_parser(
        "demo",
        help="show the proxy in front of three simulated servers",
        description="Run the proxy in front of three simulated ComfyUI servers, and send one prompt through it.",
    )
    one.add_argument("--host", default="127.0.0.1", metavar="H", help="address to listen on (%(default)s)")
    one.add_argument("--port", type=int, default=8188, metavar="P", help="port to listen on (%(default)s; 0: any)")
    one.add_argument("--data-dir", type=Path, metavar="DIR", help="where jobs are kept (a temporary folder)")
    one.set_defaults(run=demo.run)
    return parser


def _config() -> Path | None:
    name = os.environ.get(CONFIG_VARIABLE)
    return Path(name) if name else None
