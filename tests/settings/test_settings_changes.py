"""What is different between two configurations, and what is left of both."""

from dataclasses import replace
from pathlib import Path

import pytest
from settings_support import read

from comfyproxy.settings import NodeSettings, Settings
from comfyproxy.settings.changes import Change, changes, merged
from comfyproxy.settings.kinds import every_key

FILE = """
    nodes:
      static_nodes:
        - {node_id: a, host: one, max_concurrent: 1, metadata: {weight: 2}}
        - {node_id: b, host: two}
      health_check: {interval: 5}
    queue: {max_jobs: 5}
    interrupt_without_id: reject
"""


@pytest.fixture
def old(tmp_path: Path) -> Settings:
    return read(tmp_path, FILE)


def paths(old: Settings, new: Settings) -> list[str]:
    return [change.path for change in changes(old, new)]


def with_nodes(settings: Settings, *nodes: NodeSettings) -> Settings:
    return replace(settings, nodes=replace(settings.nodes, static_nodes=nodes))


def test_nothing_is_different_in_the_same(old: Settings) -> None:
    assert changes(old, old) == []
    assert changes(Settings(), Settings()) == []


def test_every_key_that_differs_is_named_in_the_order_of_the_schema(tmp_path: Path, old: Settings) -> None:
    new = read(
        tmp_path,
        FILE.replace("interval: 5", "rise: 5, interval: 6").replace("reject", "all") + "\n    outputs: shared",
    )
    assert paths(old, new) == [
        "nodes.health_check.interval",
        "nodes.health_check.rise",
        "outputs.shared",
        "interrupt_without_id",
    ]


def test_nodes_are_told_apart_by_name(old: Settings) -> None:
    a, b = old.nodes.static_nodes
    new = with_nodes(old, replace(a, max_concurrent=9, metadata={}), NodeSettings(node_id="c", host="three"))
    assert changes(old, new) == [
        Change("nodes.static_nodes[a].max_concurrent", "nodes.static_nodes[].max_concurrent"),
        Change("nodes.static_nodes[a].metadata", "nodes.static_nodes[].metadata"),
        Change("nodes.static_nodes[b]", "nodes.static_nodes[]"),
        Change("nodes.static_nodes[c]", "nodes.static_nodes[]"),
    ]
    assert paths(old, with_nodes(old, b, a)) == ["nodes.static_nodes"]
    assert paths(old, with_nodes(old, NodeSettings(node_id="c", host="three"), a, b)) == ["nodes.static_nodes[c]"]
    moved = NodeSettings(node_id="b", host="three")
    assert paths(old, with_nodes(old, a, moved)) == ["nodes.static_nodes[b].host", "nodes.static_nodes[b].url"]


def test_the_keys_of_changes_are_those_of_the_schema(old: Settings) -> None:
    known = {path for path, _ in every_key(Settings)} | {"nodes.static_nodes[]"}
    assert {change.key for change in changes(old, Settings())} <= known
    assert {change.key for change in changes(Settings(), old)} <= known


def test_what_is_taken_is_new_and_all_else_stays(old: Settings) -> None:
    a, b = old.nodes.static_nodes
    new = with_nodes(Settings(), NodeSettings(node_id="c", host="c"), b, replace(a, max_concurrent=9, metadata={}))
    assert merged(old, new, lambda key: True) == new
    assert merged(old, new, lambda key: False) == old
    some = merged(old, new, lambda key: key in ("queue.max_jobs", "nodes.static_nodes[].max_concurrent"))
    assert paths(old, some) == ["nodes.static_nodes[a].max_concurrent", "queue.max_jobs"]
    assert (some.queue, some.nodes.static_nodes) == (new.queue, (replace(a, max_concurrent=9), b))
    ordered = merged(old, new, lambda key: key == "nodes.static_nodes")
    assert ordered.nodes.static_nodes == (b, a)
    members = merged(old, new, lambda key: key == "nodes.static_nodes[]")
    assert [node.node_id for node in members.nodes.static_nodes] == ["a", "b", "c"]
