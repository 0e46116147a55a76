"""Files in the folders of backends: how they are named, and what is known of them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FileRef:
    """One file as `/view` and `/upload` name it."""

    name: str
    subfolder: str = ""  # as its backend knows it: without a backend's name in front
    type: str = "input"  # input, output or temp


@dataclass(frozen=True, slots=True)
class FileStamp:
    """What HEAD /view says of a file; it changes when the file does. None where the backend does not say it."""

    size: int | None = None  # bytes
    etag: str | None = None


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What a file of that name should hold on every backend."""

    ref: FileRef
    digest: str  # opaque: equal means equal content
    size: int | None = None  # bytes; None where backends may differ in it (each encodes a mask's PNG itself)
