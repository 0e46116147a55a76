"""The files in `config/` against the code."""

import dataclasses
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from settings_support import read

from comfyproxy.settings import NodeSettings, Settings
from comfyproxy.settings.kinds import every_key

REFERENCE = (files("comfyproxy.config") / "reference.yaml").read_text("utf-8")
EXAMPLE = (files("comfyproxy.config") / "example.yaml").read_text("utf-8")
# A key that is only an alternative is commented out, without a space; what is said about keys has one.
WITH_ALTERNATIVES = re.sub(r"#(?=\w)", "", REFERENCE)


def keys_of(value: Any, above: str = "") -> set[str]:
    """Return the path of every key of a document, in the form of the schema."""
    if isinstance(value, list):
        return {path for item in value for path in keys_of(item, f"{above[:-1]}[].")}
    if not isinstance(value, dict):
        return set()
    return {path for key, inner in value.items() for path in ({f"{above}{key}"} | keys_of(inner, f"{above}{key}."))}


def test_the_reference_says_the_defaults_and_shows_one_node(tmp_path: Path) -> None:
    settings = read(tmp_path, REFERENCE)
    assert settings.nodes.static_nodes == (NodeSettings(node_id="gpu-a", host="192.168.1.101"),)
    nodes = dataclasses.replace(settings.nodes, static_nodes=())
    assert dataclasses.replace(settings, nodes=nodes) == Settings()


def test_the_reference_means_the_same_with_its_alternatives(tmp_path: Path) -> None:
    assert WITH_ALTERNATIVES != REFERENCE
    assert read(tmp_path, WITH_ALTERNATIVES) == read(tmp_path, REFERENCE)


def test_the_reference_has_every_key_of_the_schema_and_no_other() -> None:
    assert keys_of(yaml.safe_load(WITH_ALTERNATIVES)) == {path for path, _ in every_key(Settings)}


def test_the_reference_explains_every_key() -> None:
    previous = ""
    for line in REFERENCE.splitlines():
        is_value = re.match(r"\s*(- |#)?\w+: \S", line)
        assert not is_value or previous.strip().startswith("# "), f"nothing is said about {line.strip()}"
        previous = line


def test_the_example_is_three_nodes_and_otherwise_the_defaults(tmp_path: Path) -> None:
    settings = read(tmp_path, EXAMPLE)
    assert [node.url for node in settings.nodes.static_nodes] == [
        "http://192.168.1.101:8188",
        "http://192.168.1.102:8188",
        "https://gpu.example.com/comfyui",
    ]
    nodes = dataclasses.replace(settings.nodes, static_nodes=())
    assert dataclasses.replace(settings, nodes=nodes) == Settings()
