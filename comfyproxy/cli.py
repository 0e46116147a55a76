"""The command `comfyproxy`: its subcommands and their options. What they do is in `commands/`."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from comfyproxy import __version__
from comfyproxy.commands import check, demo, plan, serve
from comfyproxy.core.words import nearest
from comfyproxy.planning import fleet, strategies, workloads
from comfyproxy.settings.loading import CONFIG
from comfyproxy.simulator import command as simulate

_SERVE = """examples:
  comfyproxy serve --backend http://gpu-a:8188 --backend http://gpu-b:8188
  comfyproxy serve --backend fast=http://10.0.0.7:8188 --host 0.0.0.0
  comfyproxy serve --config comfyproxy.yaml --port 9000

environment:
  COMFYPROXY_CONFIG         the file, where --config is not given
  COMFYPROXY_BACKENDS       servers as for --backend, separated by spaces or commas
  COMFYPROXY_SERVER_PORT    server.port; every key has its variable, COMFYPROXY_LOGGING_FORMAT=json and so on

The command line comes before the environment, the environment before the file. `comfyproxy check FILE` says what a
file means. SIGINT (Ctrl-C) and SIGTERM stop the proxy; waiting and running prompts are taken up at the next start.
SIGHUP lets it read all of this again."""

_CHECK = """example:
  comfyproxy check comfyproxy.yaml

The exit code is 0 if the file can be used and 1 if not; then every error is told with its line. The environment and the
command line, which `serve` puts before the file, are not looked at."""

_SIMULATE = """examples:
  comfyproxy simulate --port 8189 --checkpoints v1-5-pruned-emaonly-fp16.safetensors
  comfyproxy simulate --port 8190 --version 0.3.64 --speed 10"""

_PLAN = f"""examples:
  comfyproxy plan
  comfyproxy plan --workload batch-many --fleet equal --svg plan.svg
  comfyproxy plan --fleet fleet.yaml --trace trace.jsonl --strategy model_affinity --strategy least_loaded
  comfyproxy plan --from-store data --export-trace trace.jsonl --export-fleet fleet.yaml

workloads: one of {", ".join(dict.fromkeys(name.partition("-")[0] for name in workloads.NAMES))},
  each with the models -one, -few or -many

fleet.yaml:
  backends:
    - {{name: gpu-a, speed: 2.0}}             # runs a job in half its run_s
    - {{name: gpu-b, load_speed: 0.5, max_concurrent: 1, weight: 1, priority: 2, models: [sdxl.safetensors]}}
  models:
    sdxl.safetensors: {{load_s: 14}}          # seconds at load_speed 1; those that are not named take 20

trace.jsonl, a line for each job:
  {{"at_s": 0.5, "client": "anna", "model": "sdxl.safetensors", "kind": "portrait", "run_s": 8.1, "priority": 0}}

All is simulated, with the scheduler that the proxy uses; the same arguments give the same figures. A store is only
read, also that of a running proxy. The exit code is 0, or 1 if a file cannot be used."""

_DEMO = """example:
  comfyproxy demo --port 9000

Needs no GPU, no ComfyUI and no configuration. SIGINT (Ctrl-C) and SIGTERM stop it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 1 failed (a message on stderr says why).

    Raises SystemExit(2) for a command line that means nothing, and SystemExit(0) after `--help` and `--version`.
    """
    args, unknown = _parser().parse_known_args(arguments)
    if unknown:
        args.parser.refuse(unknown[0])
    run: Callable[[argparse.Namespace], int] = args.run
    try:
        return run(args)
    except BrokenPipeError:
        # Whoever read the output has gone (`comfyproxy check f | head`); Python would complain when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


class _Parser(argparse.ArgumentParser):
    """One that takes no abbreviations, which a later option may make ambiguous, and knows what was probably meant."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)

    def refuse(self, argument: str) -> NoReturn:
        """Exit because of an argument that is none of ours."""
        option = argument.partition("=")[0]
        if not option.startswith("-"):
            self.error(f"there is no place for {argument}")
        near = nearest(option, [name for name in self._option_string_actions if name.startswith("--")])
        self.error(f"there is no option {option}" + (f"; did you mean {near}?" if near else ""))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="comfyproxy",
        description="One endpoint in front of many ComfyUI servers.",
        epilog="`comfyproxy COMMAND --help` explains a command. New here? `comfyproxy demo` needs nothing else.",
    )
    parser.add_argument("--version", action="version", version=f"comfyproxy {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    one = commands.add_parser(
        "serve",
        help="run the proxy",
        description="Run the proxy in front of ComfyUI servers that are named here or in a file.",
        epilog=_SERVE,
    )
    one.add_argument(
        "--config", type=Path, default=_config(), metavar="FILE", help="YAML file with the settings (none needed)"
    )
    one.add_argument(
        "--backend",
        action="append",
        default=[],
        metavar="[NAME=]URL",
        help="a ComfyUI server; give it once for each. These replace the nodes of the file. NAME is what it is called "
        "in logs and in the folders of its outputs (its host)",
    )
    one.add_argument("--host", metavar="H", help="address to listen on (127.0.0.1, this machine only; 0.0.0.0: all)")
    one.add_argument(
        "--port", type=simulate.port_number, metavar="P", help="port to listen on (8188, which is ComfyUI's; 0: any)"
    )
    one.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="folder for prompts, history and uploads; one proxy each (data)"
    )
    one.add_argument("--log-level", metavar="LEVEL", help="debug, info, warning or error (info)")
    one.set_defaults(run=serve.run, parser=one)

    one = commands.add_parser(
        "check",
        help="check a configuration file",
        description="Print what a configuration file says, defaults included, or everything that is wrong with it.",
        epilog=_CHECK,
    )
    one.add_argument("file", type=Path, metavar="FILE", help="YAML file as for `comfyproxy serve --config`")
    one.set_defaults(run=check.run, parser=one)

    one = commands.add_parser(
        "simulate",
        help="run a simulated ComfyUI server, to try things out without a GPU",
        description="Run a simulated ComfyUI server. Its API is that of a real one; its pictures are patterns.",
        epilog=_SIMULATE,
    )
    simulate.add_arguments(one)
    one.set_defaults(run=simulate.run, parser=one)

    one = commands.add_parser(
        "plan",
        help="compare the strategies on a fleet and its jobs, in simulated time",
        description="Tell what each strategy would do with a fleet and its jobs, beside what no schedule can beat.",
        epilog=_PLAN,
    )
    _add_plan(one)
    one.set_defaults(run=plan.run, parser=one)

    one = commands.add_parser(
        "demo",
        help="show the proxy in front of three simulated servers",
        description="Run the proxy in front of three simulated ComfyUI servers, and send one prompt through it.",
        epilog=_DEMO,
    )
    one.add_argument("--host", default="127.0.0.1", metavar="H", help="address to listen on (%(default)s)")
    one.add_argument(
        "--port",
        type=simulate.port_number,
        default=8188,
        metavar="P",
        help="port to listen on (%(default)s; 0: any)",
    )
    one.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="folder for prompts and history (a temporary one, removed later)"
    )
    one.set_defaults(run=demo.run, parser=one)
    return parser


def _add_plan(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "--fleet",
        metavar="FLEET",
        help=f"YAML file with the backends, or {' or '.join(fleet.BUILT_IN)} ({plan.DEFAULT_FLEET}; with --from-store: "
        "as recorded)",
    )
    jobs = one.add_mutually_exclusive_group()
    jobs.add_argument("--trace", type=Path, metavar="FILE", help="the jobs, as JSON lines")
    jobs.add_argument(
        "--workload",
        type=_workload,
        default=plan.DEFAULT_WORKLOAD,
        metavar="NAME",
        help=f"made-up jobs in place of a trace ({plan.DEFAULT_WORKLOAD})",
    )
    jobs.add_argument(
        "--from-store", type=Path, metavar="DIR", help="the jobs that a proxy with this data directory has run"
    )
    one.add_argument(
        "--seed", type=int, default=1, metavar="N", help="of the workload; another one, other jobs (%(default)s)"
    )
    one.add_argument(
        "--strategy",
        action="append",
        default=[],
        choices=strategies.NAMES,
        metavar="NAME",
        help=f"give it once for each (all: {', '.join(strategies.NAMES)})",
    )
    one.add_argument("--svg", type=Path, metavar="FILE", help="draw what each backend does, and when")
    one.add_argument("--json", action="store_true", help="print the figures as JSON")
    one.add_argument("--export-trace", type=Path, metavar="FILE", help="write the jobs as a trace")
    one.add_argument("--export-fleet", type=Path, metavar="FILE", help="write the fleet and its models as YAML")
    one.add_argument(
        "--client-ids",
        action="store_true",
        help="with --from-store, name clients by their ids and not as client-1, client-2",
    )


def _workload(text: str) -> tuple[str, str | None]:
    """Return the name of a workload, and of the fleet that may stand behind it: `batch-many-equal`."""
    for name in workloads.NAMES:
        for of_fleet in (None, *fleet.BUILT_IN):
            if text == (name if of_fleet is None else f"{name}-{of_fleet}"):
                return name, of_fleet
    near = nearest(text, workloads.NAMES)
    hint = f"did you mean {near}?" if near else f"there are {', '.join(workloads.NAMES)}"
    raise argparse.ArgumentTypeError(f"there is no workload {text}; {hint}")


def _config() -> Path | None:
    name = os.environ.get(CONFIG, "").strip()
    return Path(name) if name else None
