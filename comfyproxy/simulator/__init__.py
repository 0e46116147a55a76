"""A simulated ComfyUI server: for tests, demonstrations and benchmarks, and for users without a GPU."""

from .backend import SimulatedBackend
from .options import SimulatorOptions

__all__ = ["SimulatedBackend", "SimulatorOptions"]
