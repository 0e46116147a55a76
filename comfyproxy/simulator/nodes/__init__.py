"""The node classes of a simulated server, by name."""

from .base import Call, InputTypes, Made, Node, describe, input_info
from .conformance import ConformanceModel, ConformanceSampler, ConformanceText
from .diffusion import (
    CheckpointLoaderSimple,
    CLIPTextEncode,
    EmptyLatentImage,
    KSampler,
    LoraLoader,
    VAEDecode,
    VAEEncode,
    VAELoader,
)
from .images import (
    EmptyImage,
    ImageInvert,
    ImageScale,
    LoadImage,
    LoadImageMask,
    PreviewImage,
    SaveImage,
    SaveImageWebsocket,
)

__all__ = ["Call", "InputTypes", "Made", "Node", "describe", "input_info", "stock_nodes"]


def stock_nodes() -> dict[str, type[Node]]:
    """Return all classes there are, in the order in which `/object_info` lists them."""
    classes: tuple[type[Node], ...] = (
        *(KSampler, CheckpointLoaderSimple, CLIPTextEncode, VAEDecode, VAEEncode, VAELoader, EmptyLatentImage),
        *(SaveImage, PreviewImage, LoadImage, LoadImageMask, ImageScale, ImageInvert, EmptyImage, LoraLoader),
        *(ConformanceSampler, ConformanceModel, ConformanceText, SaveImageWebsocket),
    )
    return {node.name: node for node in classes}
