"""The wheel, a virtual environment with nothing but it, and the command in there, called from anywhere."""

import os
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from comfyproxy.core.ports import StoreInUse
from comfyproxy.store.lock import FileLock

ROOT = Path(__file__).parents[2]
# What a build reads; a copy of it, because a build leaves its traces beside its sources.
SOURCES = ("comfyproxy", "config", "templates", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
_ONLY_HERE = ("COMFYPROXY_", "PYTHONPATH", "VIRTUAL_ENV")


def environment() -> dict[str, str]:
    """Return this process's environment without what would lend the installed command this checkout, or settings."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_ONLY_HERE)}


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@dataclass(frozen=True)
class Installed:
    """A virtual environment into which the wheel was installed."""

    folder: Path

    @property
    def binaries(self) -> Path:
        return self.folder / ("Scripts" if sys.platform == "win32" else "bin")

    def run(self, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run the command `comfyproxy`."""
        return run(str(self.binaries / "comfyproxy"), *arguments, cwd=cwd)

    def evaluate(self, expression: str, *, cwd: Path) -> str:
        """Return what an expression of Python is over there; `comfyproxy` and `resources` are imported."""
        code = f"import comfyproxy; from importlib import resources; print({expression})"
        return succeed(str(self.binaries / "python"), "-c", code, cwd=cwd).strip()


def succeed(*command: str, cwd: Path) -> str:
    """Run what must not fail; return its output."""
    done = run(*command, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(folder: Path) -> None:
    """Build the sdist, and the wheel from what the sdist holds, into a folder that is not there yet."""
    source = folder / "source"
    source.mkdir(parents=True)
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source)
    succeed(sys.executable, "-m", "build", "--outdir", str(folder), str(source), cwd=folder)


def install(wheel: Path, folder: Path) -> None:
    """Install a wheel with what it says that it needs into a new environment."""
    # Our pip installs into it: one of its own would take seconds.
    venv.create(folder, with_pip=False, symlinks=sys.platform != "win32")
    python = str(Installed(folder).binaries / "python")
    succeed(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", str(wheel), cwd=folder)


def once(folder: Path, make: Callable[[Path], None]) -> Path:
    """Have one of the processes that run the tests make a folder, and all others wait for it."""
    done = folder.with_name(f"{folder.name}-done")
    while True:
        try:
            lock = FileLock.acquire(folder)
        except StoreInUse:
            time.sleep(0.1)
            continue
        try:
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # what another one failed to make
                make(folder)
                done.touch()
        finally:
            lock.release()
        return folder
