"""The command `comfyproxy simulate`."""

import argparse
import asyncio
import errno
import sys
from pathlib import Path

from comfyproxy.eventloop import loop_factory, stop_on_signals

from .backend import SimulatedBackend
from .control import ControlPortError
from .options import SimulatorOptions
from .profile import VERSIONS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    defaults = SimulatorOptions()
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument(
        "--port", type=port_number, default=8188, metavar="P", help="port to listen on (%(default)s; 0: any)"
    )
    parser.add_argument(
        "--version", choices=VERSIONS, default=defaults.version, help="the ComfyUI to imitate (%(default)s)"
    )
    parser.add_argument(
        "--base-dir", type=Path, metavar="DIR", help="folder for input, output, temp, user and models (a temporary one)"
    )
    parser.add_argument("--name", default=defaults.name, help="the name of its GPU (%(default)s)")
    parser.add_argument(
        "--checkpoints", type=_names, default=(), metavar="A,B", help="file names of the checkpoints it has (none)"
    )
    parser.add_argument(
        "--windows", action="store_true", help="write the names of models with backslashes, as on Windows"
    )
    parser.add_argument(
        "--speed", type=_positive, default=defaults.speed, metavar="X", help="times faster than nominal (%(default)g)"
    )
    parser.add_argument(
        "--load-seconds",
        type=_not_negative,
        default=defaults.load_seconds,
        metavar="S",
        help="what loading a checkpoint costs when it is not in memory, at nominal speed (%(default)g)",
    )
    parser.add_argument(
        "--vram-models",
        type=_count,
        default=defaults.vram_models,
        metavar="N",
        help="how many checkpoints memory holds (%(default)s)",
    )
    parser.add_argument(
        "--vram-gb",
        type=_positive,
        default=defaults.vram_gb,
        metavar="G",
        help="memory of its GPU in GiB (%(default)g)",
    )
    parser.add_argument("--seed", type=int, default=defaults.seed, help="changes all pictures (%(default)s)")
    parser.add_argument(
        "--control-port", type=port_number, metavar="P", help="port on which faults can be set over HTTP (off; 0: any)"
    )
    parser.add_argument("--frontend", type=Path, metavar="DIR", help="folder of a web page to serve at /")


def run(args: argparse.Namespace) -> int:
    """Simulate a server until SIGINT or SIGTERM; return the exit code."""
    if args.frontend is not None and not (args.frontend / "index.html").is_file():
        return _fail(f"--frontend {args.frontend}: there is no index.html in it")
    options = SimulatorOptions(
        version=args.version,
        base_dir=args.base_dir,
        name=args.name,
        checkpoints=args.checkpoints,
        windows=args.windows,
        speed=args.speed,
        load_seconds=args.load_seconds,
        vram_models=args.vram_models,
        vram_gb=args.vram_gb,
        seed=args.seed,
        control=args.control_port is not None,
        control_port=args.control_port or 0,
        frontend=args.frontend,
    )
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        try:
            return runner.run(_serve(SimulatedBackend(options), args.host, args.port))
        except KeyboardInterrupt:  # where signals cannot be handled in the loop
            return 0


async def _serve(backend: SimulatedBackend, host: str, port: int) -> int:
    stop = asyncio.Event()
    stop_on_signals(stop)
    try:
        await backend.start(host, port)
    except OSError as exc:
        option = "--port"
        if isinstance(exc, ControlPortError):
            option, port = "--control-port", backend.options.control_port
        if exc.errno == errno.EADDRINUSE:
            return _fail(f"port {port} on {host} is taken; choose another with {option}")
        where = f": {exc.filename}" if exc.filename else ""
        return _fail(f"cannot start at {host}:{port}: {exc.strerror or exc}{where}")
    print(f"simulated ComfyUI {backend.options.version} at {backend.url}", flush=True)
    if backend.control_url:
        print(f"faults at {backend.control_url}/faults", flush=True)
    try:
        await stop.wait()
    finally:
        await backend.stop()
    return 0


def _fail(message: str) -> int:
    print(f"comfyproxy simulate: {message}", file=sys.stderr)
    return 1


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def port_number(text: str) -> int:
    """Read a port from the command line; 0 is any."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: give a number from 0 to 65535")
    return int(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None


def _positive(text: str) -> float:
    value = _number(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, not {text}")
    return value


def _not_negative(text: str) -> float:
    value = _number(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must not be negative, not {text}")
    return value


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, not {text}")
    return int(text)
