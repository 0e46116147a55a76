"""The folders of a simulated server, and how ComfyUI names and finds files in them.

Source: ComfyUI 0.25.0, `folder_paths.py`.
"""

import json
import os
import shutil
import struct
import time
from collections.abc import Iterable
from pathlib import Path, PureWindowsPath

from .profile import Profile

_ANNOTATIONS = ("output", "input", "temp")


class OutsideError(Exception):
    """A path would leave the folder it belongs to; reported as the bare Exception that ComfyUI raises."""

    reported_as = "Exception"


class Folders:
    """Input, output, temp, user and models under one base folder.

    Args:
        windows: whether the names of models have backslashes in front of them, and are found by either separator.
    """

    def __init__(self, base: Path, profile: Profile, *, windows: bool = False) -> None:
        self.base = base.absolute()
        self._profile, self._windows = profile, windows
        self.input, self.output, self.temp = (self.base / name for name in ("input", "output", "temp"))
        self.user, self.models = self.base / "user", self.base / "models"

    def prepare(self, checkpoints: Iterable[str]) -> None:
        """Make what is missing, with placeholder checkpoints, and empty temp, as a start of ComfyUI does."""
        shutil.rmtree(self.temp, ignore_errors=True)
        for folder in (self.input, self.output, self.user, self.models):
            folder.mkdir(parents=True, exist_ok=True)
        for kind in self._profile.model_kinds:
            for folder in self.model_folders(kind):
                folder.mkdir(parents=True, exist_ok=True)
        for name in checkpoints:
            path = self.models / "checkpoints" / self.local(name)
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(_placeholder(self.local(name)))

    def of_type(self, kind: str | None) -> Path | None:
        """Return the folder that `type=` of a request names, or None."""
        return {"input": self.input, "output": self.output, "temp": self.temp}.get(kind or "")

    def annotated(self, name: str) -> tuple[str, Path | None]:
        """Split `x.png [output]` into the name and its folder; None if the name carries no annotation."""
        for kind in _ANNOTATIONS:
            if name.endswith(f"[{kind}]"):
                return name[: -len(kind) - 3], self.of_type(kind)
        return name, None

    def input_path(self, name: str) -> str:
        """Return where the file lies that a LoadImage names."""
        bare, folder = self.annotated(name)
        return os.path.join(folder or self.input, bare)  # noqa: PTH118  (an absolute name must win, as there)

    def input_images(self) -> list[str]:
        """Return the names of all pictures in the input folder itself."""
        return sorted(entry.name for entry in os.scandir(self.input) if entry.is_file() and _is_image(entry.name))

    def model_folders(self, kind: str) -> list[Path]:
        """Return where models of a kind may lie; raises KeyError for an unknown kind."""
        folder = self._profile.model_folder(kind)
        if folder is None:
            raise KeyError(kind)
        if kind == "custom_nodes":
            return [self.base / kind]
        return [self.models / place for place in folder.places]

    def model_names(self, kind: str) -> list[str]:
        """Return the names of all models of a kind, with their subfolders; raises KeyError for an unknown kind."""
        folder = self._profile.model_folder(kind)
        if folder is None:
            raise KeyError(kind)
        found: set[str] = set()
        for place in self.model_folders(kind):
            for path in place.rglob("*"):
                if path.is_file() and (not folder.extensions or path.suffix.lower() in folder.extensions):
                    relative = path.relative_to(place)
                    found.add(str(PureWindowsPath(relative.as_posix())) if self._windows else relative.as_posix())
        return sorted(found)

    def model_path(self, kind: str, name: str) -> Path | None:
        """Return the file of a model, or None."""
        if self._profile.model_folder(kind) is None:
            return None
        for place in self.model_folders(kind):
            path = place / os.path.relpath(f"/{self.local(name)}", "/")
            if path.is_file():
                return path
        return None

    def local(self, name: str) -> str:
        """Return a model's name as this system's, on which we play Windows, writes it."""
        return name.replace("\\", "/") if self._windows else name

    def save_place(self, prefix: str, root: Path, width: int, height: int) -> tuple[Path, str, int, str]:
        """Return folder, file name, next counter and subfolder for pictures saved under a prefix.

        Raises OutsideError if the prefix leaves `root`.
        """
        prefix = _filled(prefix, width, height)
        normal = os.path.normpath(prefix)
        subfolder, name = os.path.split(normal)
        folder = Path(os.path.abspath(os.path.join(root, subfolder)))  # noqa: PTH100, PTH118
        if not folder.is_relative_to(root):
            raise OutsideError(
                "**** ERROR: Saving image outside the output folder is not allowed."
                f"\n full_output_folder: {folder}\n         output_dir: {root}"
                f"\n         commonpath: {os.path.commonpath((root, folder))}"
            )
        folder.mkdir(parents=True, exist_ok=True)
        counters = (_counter(entry, name) for entry in os.listdir(folder))  # noqa: PTH208
        return folder, name, max((c for c in counters if c is not None), default=0) + 1, subfolder


def _counter(file_name: str, name: str) -> int | None:
    """Return the counter of a saved file, or None if it was saved under another name."""
    if not file_name.startswith(f"{name}_"):
        return None
    digits = file_name[len(name) + 1 :].split(".")[0].split("_")[0]
    return int(digits) if digits.isdecimal() else 0


def _filled(prefix: str, width: int, height: int) -> str:
    now = time.localtime()
    values = {
        "width": f"{width}",
        "height": f"{height}",
        "year": f"{now.tm_year}",
        "month": f"{now.tm_mon:02}",
        "day": f"{now.tm_mday:02}",
        "hour": f"{now.tm_hour:02}",
        "minute": f"{now.tm_min:02}",
        "second": f"{now.tm_sec:02}",
    }
    for key, value in values.items():
        prefix = prefix.replace(f"%{key}%", value)
    return prefix


def _is_image(name: str) -> bool:
    return name.lower().endswith((".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"))


def _placeholder(name: str) -> bytes:
    """A valid safetensors file without tensors."""
    header = json.dumps({"__metadata__": {"format": "pt", "modelspec.title": Path(name).stem}}).encode()
    return struct.pack("<Q", len(header)) + header
