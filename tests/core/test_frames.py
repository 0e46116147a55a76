"""Binary frames: laid out as ComfyUI does, and never read past their end."""

import json
import struct
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyproxy.core import frames
from comfyproxy.core.frames import BadFrame, FrameKind, ImageFormat

images = st.binary(max_size=50)
metadata_objects = st.dictionaries(
    st.text(max_size=8), st.none() | st.integers(0, 99) | st.text(max_size=8), max_size=4
)


def u32(number: int) -> bytes:
    return struct.pack(">I", number)


def with_header(header: bytes, image: bytes = b"IMAGE") -> bytes:
    return u32(4) + u32(len(header)) + header + image


def test_frames_are_laid_out_as_by_comfyui() -> None:
    assert frames.preview(ImageFormat.JPEG, b"img") == u32(1) + u32(1) + b"img"
    assert frames.preview(ImageFormat.PNG, b"img") == u32(1) + u32(2) + b"img"
    assert frames.text("4:1", "h\u00e9") == u32(3) + u32(3) + b"4:1" + "h\u00e9".encode()
    assert frames.text("\u00e9", "x") == u32(3) + u32(2) + "\u00e9x".encode()
    assert frames.preview_with_metadata({"a": 1}, b"img") == u32(4) + u32(7) + b'{"a":1}img'


@given(metadata_objects, images)
def test_metadata_and_image_come_back(metadata: dict[str, Any], image: bytes) -> None:
    frame = frames.preview_with_metadata(metadata, image)
    assert frames.kind(frame) == FrameKind.PREVIEW_WITH_METADATA
    assert frames.split_metadata(frame) == (metadata, image)


@given(metadata_objects, images)
def test_metadata_as_python_writes_it_come_back(metadata: dict[str, Any], image: bytes) -> None:
    assert frames.split_metadata(with_header(json.dumps(metadata, indent=1).encode(), image)) == (metadata, image)


@given(metadata_objects)
def test_every_truncation_is_a_bad_frame(metadata: dict[str, Any]) -> None:
    whole = frames.preview_with_metadata(metadata, b"")
    for length in range(len(whole)):
        for read in (frames.split_metadata, frames.without_metadata):
            with pytest.raises(BadFrame):
                read(whole[:length])
    assert frames.split_metadata(whole) == (metadata, b"")


def test_a_frame_that_ends_in_the_space_behind_its_metadata_is_a_bad_frame() -> None:
    whole = with_header(b"{}   ", b"")
    assert frames.split_metadata(whole) == ({}, b"")
    for missing in range(1, 4):
        with pytest.raises(BadFrame):
            frames.split_metadata(whole[:-missing])


@pytest.mark.parametrize("length", range(4))
def test_a_frame_without_a_kind_is_a_bad_frame(length: int) -> None:
    for read in (frames.kind, frames.split_metadata, frames.without_metadata, frames.is_droppable):
        with pytest.raises(BadFrame):
            read(b"\0\0\0"[:length])


@pytest.mark.parametrize("kind", [0, 1, 2, 3, 5, 1000, 2**32 - 1])
def test_only_previews_with_metadata_are_split(kind: int) -> None:
    frame = u32(kind) + with_header(b"{}")[4:]
    assert frames.kind(frame) == kind
    with pytest.raises(BadFrame):
        frames.split_metadata(frame)


@pytest.mark.parametrize("header", [b"", b"[]", b"null", b"5", b"{", b"\xff", b'{"a": NaN}', b'{"a": ' + b"[" * 5000])
def test_metadata_that_is_no_object_is_a_bad_frame(header: bytes) -> None:
    with pytest.raises(BadFrame):
        frames.split_metadata(with_header(header))


def test_metadata_nested_to_the_limit_is_no_other_failure() -> None:
    for depth in range(850, 1000):
        with suppress(BadFrame):
            frames.split_metadata(with_header(b'{"a": ' + b"[" * depth + b"]" * depth + b"}"))


@given(st.binary(max_size=60) | images.map(lambda image: u32(4) + image) | images.map(lambda image: u32(1) + image))
def test_whatever_comes_is_read_or_is_a_bad_frame(frame: bytes) -> None:
    for read in (frames.kind, frames.split_metadata, frames.without_metadata, frames.is_droppable):
        with suppress(BadFrame):
            read(frame)


@pytest.mark.parametrize(
    ("image_type", "expected"),
    [("image/png", ImageFormat.PNG), ("image/jpeg", ImageFormat.JPEG), ("image/webp", ImageFormat.JPEG), (None, 1)],
)
def test_old_clients_get_the_image_alone(image_type: str | None, expected: int) -> None:
    frame = frames.preview_with_metadata({"image_type": image_type, "prompt_id": "p"}, b"img")
    assert frames.without_metadata(frame) == frames.preview(expected, b"img")


def test_only_previews_that_are_no_results_may_be_dropped() -> None:
    assert frames.is_droppable(frames.preview(ImageFormat.JPEG, b"img"))
    assert frames.is_droppable(frames.preview_with_metadata({"image_type": "image/jpeg"}, b"img"))
    assert not frames.is_droppable(frames.preview(ImageFormat.PNG, b"img"))
    assert not frames.is_droppable(frames.preview_with_metadata({"image_type": "image/png"}, b"img"))
    assert not frames.is_droppable(frames.text("1", "step 5"))
    assert not frames.is_droppable(u32(1000) + u32(1) + b"of a custom node")
    assert not frames.is_droppable(u32(1))
    assert not frames.is_droppable(u32(1) + b"\0\0\1")
