"""What people are told about settings that are right."""

from pathlib import Path

from settings_support import read

from comfyproxy.settings import (
    HealthCheck,
    LoadBalancing,
    Nodes,
    NodeSettings,
    OutputSettings,
    Settings,
    describe,
    warnings,
)

FILE = """
    nodes:
      static_nodes:
        - node_id: a
          host: "::1"
          capabilities: [x, "yes"]
          metadata: {rack: &rack {row: 1, "on": [1, 2.5, null, "ü"]}, again: *rack}
        - {node_id: "1", url: "https://h/p/"}
    server: {cors_origin: "*"}
    outputs: shared
    store: {data_dir: "some where/5"}
"""


def test_every_key_is_there_with_its_value_and_every_node_with_its_url(tmp_path: Path) -> None:
    lines = [line.strip() for line in describe(read(tmp_path, FILE)).splitlines()]
    for line in [
        "url: http://[::1]:8188",
        "url: https://h/p",
        "port: 443",
        "shared: true",
        "mailbox_mb: 64.0",
        "rise: 2",
    ]:
        assert line in lines


def test_what_is_described_can_be_loaded_and_says_the_same(tmp_path: Path) -> None:
    settings = read(tmp_path, FILE)
    assert read(tmp_path, describe(settings)) == settings
    assert read(tmp_path, describe(Settings())) == Settings()


def test_nothing_is_described_by_reference_to_something_else(tmp_path: Path) -> None:
    assert "&" not in describe(read(tmp_path, FILE))


def test_a_heartbeat_timeout_that_a_healthy_backend_cannot_keep_is_warned_of() -> None:
    nodes = Nodes(health_check=HealthCheck(interval=30.0, timeout=5.0, heartbeat_timeout=20.0))
    (warning,) = warnings(Settings(nodes=nodes))
    assert warning.startswith(
        "nodes.health_check.heartbeat_timeout: 20 s is less than interval and timeout together (35 s)"
    )


def test_the_defaults_need_no_warning() -> None:
    node = NodeSettings(node_id="a", host="a", capabilities=("video",))
    balancing = LoadBalancing(strategy="weighted")
    assert warnings(Settings(nodes=Nodes(static_nodes=(node,), load_balancing=balancing))) == []


def test_what_has_no_effect_is_warned_of() -> None:
    (told,) = warnings(Settings(outputs=OutputSettings(shared=True, keep=True)))
    assert told.startswith("outputs.keep: ")
