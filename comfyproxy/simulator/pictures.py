"""Pictures as the simulated nodes pass them on: stand-ins for ComfyUI's image, mask and latent tensors."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

_SUMMARISE_ABOVE = 1000  # torch's print options: threshold, edgeitems, precision, linewidth
_EDGE_ITEMS = 3
_LINE_WIDTH = 80

Element = Callable[[tuple[int, ...]], float]


@dataclass(frozen=True, slots=True)
class Images:
    """An IMAGE: a batch of RGB pictures of equal size, whose tensor holds value / 255."""

    frames: tuple[Image.Image, ...]

    @property
    def size(self) -> tuple[int, int]:
        return self.frames[0].size

    def __str__(self) -> str:
        width, height = self.size

        def element(at: tuple[int, ...]) -> float:
            pixel = self.frames[at[0]].getpixel((at[2], at[1]))
            assert isinstance(pixel, tuple)
            return float(pixel[at[3]]) / 255

        return tensor_text((len(self.frames), height, width, 3), element)


@dataclass(frozen=True, slots=True)
class Masks:
    """A MASK: a batch of one-channel pictures."""

    frames: tuple[Image.Image, ...]

    def __str__(self) -> str:
        width, height = self.frames[0].size

        def element(at: tuple[int, ...]) -> float:
            pixel = self.frames[at[0]].getpixel((at[2], at[1]))
            assert isinstance(pixel, int | float)
            return pixel / 255

        return tensor_text((len(self.frames), height, width), element)


@dataclass(frozen=True, slots=True)
class Latent:
    """A LATENT: its size in pixels, and a seed for the pictures it decodes to; None for an empty one."""

    width: int
    height: int
    batch_size: int
    seed: int | None = None
    base: Images | None = None  # what it was encoded from

    def __str__(self) -> str:
        shape = (self.batch_size, 4, self.height // 8, self.width // 8)
        return f"{{'samples': {tensor_text(shape, lambda _: 0.0)}}}"


def painted(width: int, height: int, seed: int) -> Image.Image:
    """Return a picture that depends on nothing but its arguments: a soft gradient of four colours."""
    digest = hashlib.sha256(f"{seed}".encode()).digest()
    corners = Image.new("RGB", (2, 2))
    corners.putdata([(digest[i], digest[i + 1], digest[i + 2]) for i in (0, 3, 6, 9)])
    return corners.resize((width, height), Image.Resampling.BICUBIC)


def tensor_text(shape: Sequence[int], element: Element) -> str:
    """Return the text Python prints for a float tensor, as torch lays it out."""
    summarise = math.prod(shape) > _SUMMARISE_ABOVE
    kept = [_kept(length, summarise) for length in shape]
    shown = [element(index) for index in _indices(kept)]
    formatter, width = _formatter([value for value in shown if value])
    return f"tensor({_block((), kept, element, formatter, width, len('tensor('))})"


def _kept(length: int, summarise: bool) -> list[int | None]:
    """The positions along one dimension that are printed; None stands for the dots."""
    if summarise and length > 2 * _EDGE_ITEMS:
        return [*range(_EDGE_ITEMS), None, *range(length - _EDGE_ITEMS, length)]
    return list(range(length))


def _indices(kept: Sequence[list[int | None]]) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = [()]
    for positions in kept:
        found = [(*index, position) for index in found for position in positions if position is not None]
    return found


def _formatter(values: list[float]) -> tuple[Callable[[float], str], int]:
    if all(value.is_integer() for value in values):

        def whole(value: float) -> str:
            return f"{value:.0f}."

        return whole, max((len(whole(value)) for value in values), default=1)

    def four_places(value: float) -> str:
        return f"{value:.4f}"

    return four_places, max(len(four_places(value)) for value in values)


def _block(
    index: tuple[int, ...],
    kept: Sequence[list[int | None]],
    element: Element,
    formatter: Callable[[float], str],
    width: int,
    indent: int,
) -> str:
    positions = kept[len(index)]
    left = len(kept) - len(index)
    if left == 1:
        items = [" ..." if p is None else formatter(element((*index, p))).rjust(width) for p in positions]
        per_line = max(1, (_LINE_WIDTH - indent) // (width + 2))
        lines = [items[i : i + per_line] for i in range(0, len(items), per_line)]
        return "[" + (",\n" + " " * (indent + 1)).join(", ".join(line) for line in lines) + "]"
    parts = [
        "..." if p is None else _block((*index, p), kept, element, formatter, width, indent + 1) for p in positions
    ]
    return "[" + ("," + "\n" * (left - 1) + " " * (indent + 1)).join(parts) + "]"
