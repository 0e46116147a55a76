"""Errors of simulated nodes, and how ComfyUI writes errors down.

Source: ComfyUI 0.25.0, `execution.py` (`execute`, `full_type_name`, `format_value`).
"""

import traceback
from typing import Any

OOM_TIPS = (
    "This error means you ran out of memory on your GPU.\n\nTIPS: If the workflow worked before you might have "
    "accidentally set the batch_size to a large number."
)


class Interrupted(Exception):
    """The running prompt was interrupted."""


class OutOfMemory(RuntimeError):
    """What torch raises when the GPU's memory is full."""

    reported_as = "torch.OutOfMemoryError"


class SimulatedFailure(RuntimeError):
    """A node failed because a fault said so."""

    reported_as = "RuntimeError"


def type_name(error: BaseException) -> str:
    """Return the full name of an error's type, without `builtins`; stand-ins bear the name of what they stand for."""
    reported_as: str | None = getattr(error, "reported_as", None)
    if reported_as is not None:
        return reported_as
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def trace(error: BaseException) -> list[str]:
    """Return the stack of an error, as lists of lines are sent to clients."""
    return traceback.format_tb(error.__traceback__)


def plain(value: Any) -> Any:
    """Return an input as it is shown in an error: simple values as they are, all else as Python prints it."""
    return value if value is None or isinstance(value, int | float | str) else str(value)
