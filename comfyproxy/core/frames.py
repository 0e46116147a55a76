"""Binary websocket frames of ComfyUI: what they are and how they are laid out.

Source: ComfyUI 0.25.0, `server.py` (`encode_bytes`, `send_image`, `send_image_with_metadata`) and `protocol.py`.
Every frame starts with a big-endian u32 that names its kind.
"""

import struct
from enum import IntEnum
from typing import Any

import msgspec

_U32 = struct.Struct(">I")


class FrameKind(IntEnum):
    """The kinds that ComfyUI itself sends; custom nodes use other numbers."""

    PREVIEW = 1  # u32 image format, image; names no prompt
    TEXT = 3  # u32 length of the node id, node id, text
    PREVIEW_WITH_METADATA = 4  # u32 length, JSON metadata, image


class ImageFormat(IntEnum):
    """The image format field of a PREVIEW frame."""

    JPEG = 1
    PNG = 2


class BadFrame(ValueError):
    """A binary message that is too short or whose lengths do not add up."""


def kind(frame: bytes) -> int:
    """Return the number a frame starts with. Raises BadFrame if there is none."""
    if len(frame) < 4:
        raise BadFrame(f"a frame of {len(frame)} bytes has no kind")
    return int(_U32.unpack_from(frame)[0])


def preview(image_format: ImageFormat | int, image: bytes) -> bytes:
    """Build a PREVIEW frame."""
    return _U32.pack(FrameKind.PREVIEW) + _U32.pack(image_format) + image


def preview_with_metadata(metadata: dict[str, Any], image: bytes) -> bytes:
    """Build a PREVIEW_WITH_METADATA frame; `metadata` must say the `image_type`."""
    header = msgspec.json.encode(metadata)
    return _U32.pack(FrameKind.PREVIEW_WITH_METADATA) + _U32.pack(len(header)) + header + image


def text(node_id: str, message: str) -> bytes:
    """Build a TEXT frame as servers send it to clients without `supports_progress_text_metadata`."""
    node = node_id.encode()
    return _U32.pack(FrameKind.TEXT) + _U32.pack(len(node)) + node + message.encode()


def split_metadata(frame: bytes) -> tuple[dict[str, Any], bytes]:
    """Split a PREVIEW_WITH_METADATA frame into its metadata and its image. Raises BadFrame."""
    if kind(frame) != FrameKind.PREVIEW_WITH_METADATA or len(frame) < 8:
        raise BadFrame("not a preview with metadata")
    (length,) = _U32.unpack_from(frame, 4)
    if len(frame) < 8 + length:
        raise BadFrame(f"metadata of {length} bytes in a frame of {len(frame)}")
    try:
        metadata = msgspec.json.decode(frame[8 : 8 + length], type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError) as exc:
        raise BadFrame(f"metadata is not a JSON object: {exc}") from exc
    return metadata, frame[8 + length :]


def without_metadata(frame: bytes) -> bytes:
    """Turn a preview with metadata into the older form, as ComfyUI does for clients that cannot read the newer."""
    metadata, image = split_metadata(frame)
    image_format = ImageFormat.PNG if metadata.get("image_type") == "image/png" else ImageFormat.JPEG
    return preview(image_format, image)


def is_droppable(frame: bytes) -> bool:
    """Whether losing the frame costs a client no result.

    Previews of a running sampler are JPEGs. Nodes that deliver their result over the websocket send PNGs in the
    same frames, so those are never dropped.
    """
    frame_kind = kind(frame)
    if frame_kind == FrameKind.PREVIEW:
        return len(frame) >= 8 and _U32.unpack_from(frame, 4)[0] == ImageFormat.JPEG
    if frame_kind == FrameKind.PREVIEW_WITH_METADATA:
        return split_metadata(frame)[0].get("image_type") != "image/png"
    return False
