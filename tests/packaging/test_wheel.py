"""What users get from the wheel: a command that works in an empty environment and from any folder."""

import asyncio
import os
import zipfile
from email.parser import Parser
from functools import partial
from pathlib import Path

import aiohttp
import pytest
from packaging_support import ROOT, Installed, build, environment, install, once

from comfyproxy import __version__
from comfyproxy.simulator import SimulatedBackend


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that all workers of this run share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def wheel(shared: Path) -> Path:
    (found,) = once(shared / "built", build).glob("*.whl")
    return found


@pytest.fixture(scope="session")
def installed(shared: Path, wheel: Path) -> Installed:
    """Return an environment that was empty before the wheel was installed into it."""
    return Installed(once(shared / "environment", partial(install, wheel)))


def test_everything_but_tests_is_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    wanted = {path.relative_to(ROOT).as_posix() for path in (ROOT / "comfyproxy").rglob("*.py")} | {
        "comfyproxy/py.typed",
        *(f"comfyproxy/config/{path.name}" for path in (ROOT / "config").iterdir() if path.is_file()),
        *(f"comfyproxy/templates/{path.name}" for path in (ROOT / "templates").iterdir() if path.is_file()),
    }
    assert names == wanted


def test_the_metadata_tell_the_licence_and_the_python_it_needs(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        info = f"comfyproxy-{__version__}.dist-info"
        metadata = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
        licence = archive.read(f"{info}/licenses/LICENSE").decode()
    assert (metadata["Name"], metadata["Version"], metadata["License"]) == ("comfyproxy", __version__, "MIT")
    assert metadata["Requires-Python"] == ">=3.11"
    assert licence.startswith("MIT License")


def test_the_command_works_from_any_folder(installed: Installed, tmp_path: Path) -> None:
    done = installed.run("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"comfyproxy {__version__}\n", "")
    done = installed.run("--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "serve" in done.stdout


def test_it_is_the_installed_package_that_runs(installed: Installed, tmp_path: Path) -> None:
    found = Path(installed.evaluate("comfyproxy.__file__", cwd=tmp_path))
    assert installed.folder in found.parents


def test_the_packaged_example_is_a_good_configuration(installed: Installed, tmp_path: Path) -> None:
    for name in ("example.yaml", "reference.yaml"):
        file = installed.evaluate(f"resources.files('comfyproxy.config') / '{name}'", cwd=tmp_path)
        done = installed.run("check", file, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        assert done.stdout.startswith("nodes:\n")


async def test_it_serves_and_shows_the_status_page(installed: Installed, tmp_path: Path) -> None:
    async with SimulatedBackend() as backend, asyncio.timeout(60):
        proxy = await asyncio.create_subprocess_exec(
            installed.binaries / "comfyproxy",
            *("serve", "--backend", f"gpu-a={backend.url}", "--port", "0", "--log-level", "warning"),
            cwd=tmp_path,
            env=environment(),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            assert proxy.stdout is not None
            url = (await proxy.stdout.readline()).decode().split()[-1]
            async with aiohttp.ClientSession(url) as session:
                while True:
                    async with session.get("/readyz") as answer:
                        if answer.status == 200:
                            break
                    await asyncio.sleep(0.02)
                async with session.get("/status") as answer:
                    assert answer.status == 200
                    assert "gpu-a" in await answer.text()
        finally:
            proxy.terminate()
            _, errors = await proxy.communicate()
        assert (proxy.returncode, errors) == (0, b"")
