"""Run a simulated server: `python -m comfyproxy.simulator --port P`."""

import argparse
import sys

from .command import add_arguments, run

parser = argparse.ArgumentParser(prog="comfyproxy simulate", description="A simulated ComfyUI server.")
add_arguments(parser)
sys.exit(run(parser.parse_args()))
