"""ComfyUI's web page as its package on PyPI ships it, one folder for each version.

A virtual environment can hold only one of them, so each is installed into a folder of its own, once.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

_PACKAGE = "comfyui-frontend-package"
_FOLDER = Path(__file__).parents[2] / "build" / "frontends"
_TIMEOUT_S = 300


class FrontendUnavailableError(Exception):
    """The package is not here, and pip could not get it."""


def frontend(version: str) -> Path:
    """Return the folder of the page's static files. Raises FrontendUnavailableError."""
    folder = _FOLDER / version
    if not folder.exists():
        _install(version, folder)
    return folder / "comfyui_frontend_package" / "static"


def _install(version: str, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{version}-"))
    what = ["--no-deps", "--target", str(scratch / "package"), f"{_PACKAGE}=={version}"]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check", *what]
    try:
        subprocess.run(pip, check=True, capture_output=True, text=True, timeout=_TIMEOUT_S)
        (scratch / "package").rename(folder)
    except subprocess.CalledProcessError as exc:
        raise FrontendUnavailableError(f"{_PACKAGE} {version}: {exc.stderr.strip().rpartition(chr(10))[2]}") from exc
    except subprocess.TimeoutExpired as exc:
        raise FrontendUnavailableError(f"{_PACKAGE} {version}: no answer within {_TIMEOUT_S} s") from exc
    except OSError:
        if not folder.exists():  # else another process was faster
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
