"""`comfyproxy check FILE`."""

import argparse
import sys

from comfyproxy.settings import BadSettings, describe, load, warnings


def run(args: argparse.Namespace) -> int:
    """Print what the file says, or all that is wrong with it. The environment is left out: the file is the subject."""
    try:
        settings = load(args.file, environ={})
    except BadSettings as exc:
        print(exc, file=sys.stderr)
        return 1
    print(describe(settings), end="")
    if not settings.nodes.static_nodes:
        print(f"warning: {args.file} names no node; `serve` then needs --backend", file=sys.stderr)
    for line in warnings(settings):
        print(f"warning: {line}", file=sys.stderr)
    return 0
