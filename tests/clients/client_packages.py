"""Client programs that others wrote: each is installed once, into a folder of its own under `build/clients`.

`pins/` says what is installed: `<name>.txt` for pip, with all versions; `<name>.json` is the package.json for npm.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

from comfyproxy.core.ports import StoreInUse
from comfyproxy.store.lock import FileLock

_PINS = Path(__file__).parent / "pins"
_CACHE = Path(__file__).parents[2] / "build" / "clients"
_TIMEOUT_S = 900.0
_NO_NETWORK_S = 300.0  # what could not be had is not asked for again so soon, by the other processes of a test run
_OLDEST_NODE = 20


class ClientUnavailableError(Exception):
    """A client, or what it needs to run, cannot be had here."""


def python_with(name: str) -> Path:
    """Return a Python interpreter that can import a client; skip the test where the client cannot be had."""
    folder = _installed(name, f"{name}.txt", ".".join(map(str, sys.version_info[:2])), _pip_install)
    return _interpreter(folder)


def modules_with(name: str) -> Path:
    """Return a `node_modules` that holds a client; skip the test where the client cannot be had."""
    try:
        version = _node_version()
    except ClientUnavailableError as exc:
        pytest.skip(f"{name} cannot be tested: {exc}")
    return _installed(name, f"{name}.json", version, _npm_install) / "node_modules"


def node() -> str:
    """Return the program that runs JavaScript. Raises ClientUnavailableError."""
    found = shutil.which("node")
    if found is None:
        raise ClientUnavailableError("there is no node here")
    return found


def _installed(name: str, pin: str, runtime: str, install: Callable[[Path, Path], None]) -> Path:
    """Return the folder of a client, installed if the one that is there has other pins or was made for another runtime.

    One process of a test run installs it, and all others wait.
    """
    _CACHE.mkdir(parents=True, exist_ok=True)
    folder, failed = _CACHE / name, _CACHE / f"{name}.failed"
    pins = _PINS / pin
    wanted = hashlib.sha256(pins.read_bytes() + runtime.encode()).hexdigest()
    stamp = folder / "installed"
    lock = _locked(folder)
    try:
        if not (stamp.exists() and stamp.read_text() == wanted):
            if failed.exists() and time.time() - failed.stat().st_mtime < _NO_NETWORK_S:
                raise ClientUnavailableError(failed.read_text())
            shutil.rmtree(folder, ignore_errors=True)
            try:
                install(pins, folder)
            except ClientUnavailableError as exc:
                failed.write_text(str(exc))
                raise
            stamp.write_text(wanted)
            failed.unlink(missing_ok=True)
    except ClientUnavailableError as exc:
        pytest.skip(f"{name} cannot be installed: {exc}")
    finally:
        lock.release()
    return folder


def _locked(folder: Path) -> FileLock:
    while True:
        try:
            return FileLock.acquire(folder)
        except StoreInUse:
            time.sleep(0.1)


def _pip_install(pins: Path, folder: Path) -> None:
    venv.create(folder, with_pip=False, symlinks=sys.platform != "win32")
    # Our pip installs into it: one of its own would take seconds.
    pip = (sys.executable, "-m", "pip", "--python", str(_interpreter(folder)), "--disable-pip-version-check")
    _run(*pip, "install", "--quiet", "--no-input", "--retries", "1", "--requirement", str(pins), cwd=folder)


def _npm_install(pins: Path, folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise ClientUnavailableError("there is no npm here")
    folder.mkdir()
    shutil.copy(pins, folder / "package.json")
    # Peers are what compilers and bundlers would need; no package has a say in what runs here.
    quiet = ("--no-audit", "--no-fund", "--no-package-lock", "--loglevel=error")
    _run(npm, "install", *quiet, "--ignore-scripts", "--legacy-peer-deps", "--fetch-retries=1", cwd=folder)


def _interpreter(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def _node_version() -> str:
    said = subprocess.run((node(), "--version"), capture_output=True, text=True, check=False).stdout.strip()
    major = said.lstrip("v").partition(".")[0]
    if not major.isdigit() or int(major) < _OLDEST_NODE:
        raise ClientUnavailableError(f"node is {said or 'broken'}, and {_OLDEST_NODE} or newer is needed")
    return major


def _run(*command: str, cwd: Path) -> None:
    try:
        done = subprocess.run(
            command, cwd=cwd, env=dict(os.environ), capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise ClientUnavailableError(str(exc)) from exc
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        why = next((line for line in said if "error" in line.lower()), f"{command[0]} ended with {done.returncode}")
        raise ClientUnavailableError(why)
