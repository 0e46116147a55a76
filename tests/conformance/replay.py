"""Plays the scenarios against any server, from the command line.

    python tests/conformance/replay.py http://127.0.0.1:8188 > recording.json
    python tests/conformance/replay.py http://127.0.0.1:8188 --against 0.25.0 --nodes gpu-a,gpu-b

The server needs the three nodes that `comfyproxy.simulator.nodes.conformance` imitates, and empty folders.
"""

import argparse
import asyncio
import json
import sys

from conformance_comparison import differences
from conformance_driver import SCENARIOS, play
from conformance_recording import VERSIONS, real


def main() -> int:
    parser = argparse.ArgumentParser(description="Play the scenarios against a server.")
    parser.add_argument("base", metavar="URL", help="the server, without a slash at its end")
    parser.add_argument(
        "--against",
        action="append",
        choices=VERSIONS,
        metavar="VERSION",
        help="print the differences from a real server instead of the recording; several: from all of them",
    )
    parser.add_argument("--nodes", type=_names, default=(), metavar="A,B", help="the servers behind a proxy")
    parser.add_argument("--only", type=_names, default=SCENARIOS, metavar="A,B", help="some of the scenarios")
    args = parser.parse_args()
    if unknown := set(args.only) - set(SCENARIOS):
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}")
    recording = asyncio.run(play(args.base, args.only))
    if not args.against:
        json.dump(recording, sys.stdout, indent=1)
        return 1 if recording["errors"] else 0
    references = {version: real(version) for version in args.against}
    found = differences(recording, references, nodes=args.nodes, only=args.only)
    print(*found, f"{len(found)} differences in {len(args.only)} scenarios", sep="\n")
    return 1 if found else 0


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


if __name__ == "__main__":
    sys.exit(main())
