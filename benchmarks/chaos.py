"""Breaks backends, connections and the proxy at random while clients submit prompts, and then audits their ends.

    python benchmarks/chaos.py [--minutes M] [--seed N] [--backends B] [--clients C] [--report FILE]

Proxy and simulated backends are processes of their own on loopback. It ends with 1 if anything was lost, done twice,
delivered to the wrong client, or left behind, and says what; the folder with the logs is kept then. The seed decides
what is done in which order; when it meets what is the machine's doing, so a seed makes a failure likelier, not certain.
"""

import argparse
import asyncio
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
from chaos_audit import Audit
from chaos_clients import UNHEARD, Books, Client
from chaos_killer import Killer
from chaos_processes import Backend, Child, Proxy, Usage, free_ports

SOCKETLESS = 4  # each fourth client only polls
DRAIN_S = 180.0
SETTLE_S = 4.0  # from the last client's leaving to counting what is held


async def run(
    folder: Path, *, minutes: float, seed: int, backends: int, clients: int, every_s: float
) -> tuple[dict[str, Any], list[str]]:
    """Play, and return the figures and the problems."""
    ports = free_ports(2 * backends + 1)
    fleet = [
        Backend(f"b{index}", folder / f"b{index}", ports[2 * index], ports[2 * index + 1]) for index in range(backends)
    ]
    proxy = Proxy(folder, ports[-1], fleet)
    children: list[Child] = [*fleet, proxy]
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)  # no process is left behind
    timeout = aiohttp.ClientTimeout(total=30.0)
    # Kept for so short that none counts as the proxy's when its descriptors are counted.
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=SETTLE_S / 4)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        try:
            await asyncio.gather(*(child.start(session) for child in children))
            return await _play(proxy, fleet, session, minutes=minutes, seed=seed, clients=clients, every_s=every_s)
        finally:
            await asyncio.gather(*(child.end() for child in children))


async def _play(
    proxy: Proxy,
    fleet: list[Backend],
    session: aiohttp.ClientSession,
    *,
    minutes: float,
    seed: int,
    clients: int,
    every_s: float,
) -> tuple[dict[str, Any], list[str]]:
    books = Books()
    everybody = [
        Client(
            f"client-{index}",
            proxy.url,
            session,
            books,
            random.Random(f"{seed} client {index}"),
            has_socket=index % SOCKETLESS != 0,
        )
        for index in range(clients)
    ]
    killer = Killer(proxy, fleet, everybody, session, random.Random(f"{seed} killer"))
    await _ready(proxy, session)
    running = [asyncio.create_task(client.run(), name=client.name) for client in everybody]
    try:
        await killer.run(time.monotonic() + 60 * minutes, every_s=every_s)
        await killer.calm()
        books.is_over = True
        await _drained(proxy, session, everybody)
    finally:
        for task in running:
            task.cancel()
        outcomes = await asyncio.gather(*running, return_exceptions=True)
    books.problems += [f"a client died of {outcome!r}" for outcome in outcomes if isinstance(outcome, Exception)]
    await asyncio.sleep(SETTLE_S)
    before, after = proxy.usages[-1][0], proxy.usage()
    audit = Audit(proxy, session, books)
    audit.usage(before, after)
    await audit.ends(everybody)
    audit.ears(everybody)
    await audit.pictures()
    audit.runs(fleet, killer.faults)
    audit.lives(proxy, fleet)
    return _figures(books, killer, audit, before, after, seed=seed, minutes=minutes), audit.problems


async def _ready(proxy: Proxy, session: aiohttp.ClientSession) -> None:
    async with asyncio.timeout(DRAIN_S):
        while True:
            async with session.get(f"{proxy.url}/readyz") as answer:
                states = (await answer.json())["backends"]
            if set(states.values()) <= {"ready", "busy"}:
                return
            await asyncio.sleep(0.1)


async def _drained(proxy: Proxy, session: aiohttp.ClientSession, clients: list[Client]) -> None:
    """Wait until every prompt has ended; what has not by the deadline is for the audit to find."""
    end_s = time.monotonic() + DRAIN_S
    while time.monotonic() < end_s:
        try:
            async with session.get(f"{proxy.url}/prompt") as answer:
                left = (await answer.json())["exec_info"]["queue_remaining"]
        except UNHEARD:
            left = -1
        if left == 0 and all(client.is_idle for client in clients):
            return
        await asyncio.sleep(0.2)


def _figures(
    books: Books, killer: Killer, audit: Audit, before: Usage, after: Usage, *, seed: int, minutes: float
) -> dict[str, Any]:
    faults = Counter(
        f"{fault.target if fault.target == 'proxy' else 'backend'} {fault.kind}" for fault in killer.faults
    )
    if cuts := faults.pop("backend cut", 0):
        faults["client cut"] = cuts
    return {
        "seed": seed,
        "minutes": minutes,
        "faults": {"all": sum(faults.values())} | dict(sorted(faults.items())),
        "prompts": {"submitted": len(books.prompts)} | dict(sorted(books.counts.items())),
        "audit": dict(audit.counts),
        "memory in MB": {"start": round(before.rss_mb), "end": round(after.rss_mb)},
        "file descriptors": {"start": before.descriptors, "end": after.descriptors},
    }


def main() -> int:
    """Read the command line, play, and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2.0, help="how long to break things (default: 2)")
    parser.add_argument("--seed", type=int, default=1, help="decides what is done (default: 1)")
    parser.add_argument("--backends", type=int, default=4, help="simulated backends (default: 4)")
    parser.add_argument("--clients", type=int, default=20, help="clients, every fourth without websocket (default: 20)")
    parser.add_argument("--every", type=float, default=1.5, metavar="S", help="seconds between faults (default: 1.5)")
    parser.add_argument("--report", type=Path, metavar="FILE", help="where to write the figures, as JSON")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="comfyproxy-chaos-"))
    figures, problems = asyncio.run(
        run(
            folder,
            minutes=arguments.minutes,
            seed=arguments.seed,
            backends=arguments.backends,
            clients=arguments.clients,
            every_s=arguments.every,
        )
    )
    for name, value in figures.items():
        print(f"{name}: {value}" if not isinstance(value, dict) else f"{name}:")
        for key, number in value.items() if isinstance(value, dict) else ():
            print(f"  {key}: {number}")
    if arguments.report is not None:
        arguments.report.write_text(json.dumps(figures | {"problems": problems}, indent=2) + "\n")
    for problem in problems[:50]:
        print(f"FAILED: {problem}", file=sys.stderr)
    if problems:
        print(f"{len(problems)} problems with --seed {arguments.seed}; logs are in {folder}", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
