"""What setup.cfg lists is what is there."""

import ast
import configparser
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# The name under which each dependency is imported, where that is another.
IMPORTED_AS = {"pillow": "PIL", "pyyaml": "yaml"}


@pytest.fixture
def options() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def listed(text: str) -> list[str]:
    return text.split("\n")[1:]


def test_every_package_is_listed(options: configparser.ConfigParser) -> None:
    on_disk = {
        ".".join(file.parent.relative_to(ROOT).parts)
        for file in (ROOT / "comfyproxy").rglob("*.py")
        if "__pycache__" not in file.parts
    }
    packages = listed(options["options"]["packages"])
    assert sorted(packages) == sorted({*on_disk, "comfyproxy.templates", "comfyproxy.config"})


def test_every_folder_with_code_is_a_package() -> None:
    bare = {file.parent for file in (ROOT / "comfyproxy").rglob("*.py") if not (file.parent / "__init__.py").exists()}
    assert bare == set()


def test_what_the_code_imports_is_what_gets_installed(options: configparser.ConfigParser) -> None:
    imported = {
        name.partition(".")[0]
        for file in (ROOT / "comfyproxy").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        for name in names_of(node)
    }
    requirements = [line.partition(";")[0] for line in listed(options["options"]["install_requires"])]
    projects = [requirement.partition(">=")[0].strip() for requirement in requirements]
    declared = {IMPORTED_AS.get(project, project).replace("-", "_") for project in projects}
    assert imported - sys.stdlib_module_names - {"comfyproxy"} == declared


def names_of(node: ast.AST) -> list[str]:
    """Return the modules that a statement imports absolutely."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
        return [node.module]
    return []
