"""What a good file means."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from settings_support import read

from comfyproxy.settings import HealthCheck, LoadBalancing, NodeSettings, OutputSettings, Settings, load

AS_USERS_HAVE_IT = """\
nodes:
  static_nodes:
    - node_id: "comfyui-worker-1"
      host: "192.168.1.101"
      port: 8188
      max_concurrent: 4
      capabilities: ["text_to_image", "image_to_video"]
      metadata:
        location: "worker-server-1"
        gpu_model: "RTX 4090"
        priority: 1
        description: "main worker"
  load_balancing:
    strategy: "least_loaded"
    enable_failover: true
    max_retries: 3
  health_check:
    interval: 30
    timeout: 5
    heartbeat_timeout: 60
"""


def test_the_file_that_users_have_today_works_as_it_stands(tmp_path: Path) -> None:
    nodes = read(tmp_path, AS_USERS_HAVE_IT).nodes
    assert nodes.static_nodes == (
        NodeSettings(
            node_id="comfyui-worker-1",
            host="192.168.1.101",
            port=8188,
            url="http://192.168.1.101:8188",
            max_concurrent=4,
            capabilities=("text_to_image", "image_to_video"),
            metadata={
                "location": "worker-server-1",
                "gpu_model": "RTX 4090",
                "priority": 1,
                "description": "main worker",
            },
        ),
    )
    assert nodes.load_balancing == LoadBalancing(strategy="least_loaded", enable_failover=True, max_retries=3)
    assert nodes.health_check == HealthCheck(interval=30.0, timeout=5.0, heartbeat_timeout=60.0)


def test_that_file_says_nothing_of_the_rest_which_has_its_defaults(tmp_path: Path) -> None:
    settings = read(tmp_path, AS_USERS_HAVE_IT)
    assert dataclasses.replace(settings, nodes=Settings().nodes) == Settings()


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing but a comment\n", "---\n", "~\n", "{}\n"])
def test_an_empty_file_is_all_defaults(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text) == Settings()


def test_no_file_is_all_defaults() -> None:
    assert load(None, environ={}) == Settings()


def test_a_section_whose_keys_are_all_commented_out_has_its_defaults(tmp_path: Path) -> None:
    text = """
        server:
          # port: 9000
        nodes:
          static_nodes:
          health_check:
        outputs:
    """
    assert read(tmp_path, text) == Settings()


def test_settings_are_equal_if_they_say_the_same(tmp_path: Path) -> None:
    assert read(tmp_path, AS_USERS_HAVE_IT) == read(tmp_path, AS_USERS_HAVE_IT)
    assert read(tmp_path, AS_USERS_HAVE_IT) != read(tmp_path, AS_USERS_HAVE_IT.replace("RTX 4090", "RTX 3090"))


@pytest.mark.parametrize("text", ["outputs: shared", "outputs: {shared: true}", "outputs:\n  shared: yes"])
def test_shared_outputs_can_be_said_in_one_word(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text).outputs == OutputSettings(shared=True)


def test_a_whole_number_of_seconds_is_a_number_of_seconds(tmp_path: Path) -> None:
    interval = read(tmp_path, "nodes: {health_check: {interval: 30}}").nodes.health_check.interval
    assert isinstance(interval, float)
    assert interval == 30


@pytest.mark.parametrize(
    ("text", "section", "key", "value"),
    [
        ("server: {host: '::'}", "server", "host", "::"),
        ("server: {port: 0}", "server", "port", 0),
        ("server: {cors_origin: '*'}", "server", "cors_origin", "*"),
        ("server: {cors_origin: https://app.example:8443}", "server", "cors_origin", "https://app.example:8443"),
        ("server: {cors_origin: tauri://localhost}", "server", "cors_origin", "tauri://localhost"),
        ("server: {cors_origin: null}", "server", "cors_origin", None),
        ("server: {max_body_mb: 0.5}", "server", "max_body_mb", 0.5),
        ("server: {shutdown_timeout: 0}", "server", "shutdown_timeout", 0.0),
        ("store: {type: memory}", "store", "type", "memory"),
        ("store: {data_dir: /var/lib/comfyproxy}", "store", "data_dir", Path("/var/lib/comfyproxy")),
        ("store: {synchronous: normal}", "store", "synchronous", "normal"),
        ("history: {max_items: 1}", "history", "max_items", 1),
        ("websocket: {preview_buffer_mb: 0}", "websocket", "preview_buffer_mb", 0.0),
        ("logging: {level: debug, format: json}", "logging", "format", "json"),
        ("interrupt_without_id: reject", None, "interrupt_without_id", "reject"),
    ],
)
def test_every_section_is_read(tmp_path: Path, text: str, section: str | None, key: str, value: Any) -> None:
    settings = read(tmp_path, text)
    assert getattr(getattr(settings, section) if section else settings, key) == value


def test_a_tilde_in_front_of_the_data_folder_is_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert read(tmp_path, "store: {data_dir: ~/comfyproxy}").store.data_dir == tmp_path / "comfyproxy"


def test_metadata_is_whatever_users_write(tmp_path: Path) -> None:
    text = """
        nodes:
          static_nodes:
            - node_id: a
              host: a
              metadata:
                bought: 2024-05-01
                on: shelf 3
                7: seven
                racks: [1, 2.5, {left: true}]
                nothing: ~
                odd keys & more: "ä"
    """
    assert read(tmp_path, text).nodes.static_nodes[0].metadata == {
        "bought": "2024-05-01",  # and not a date, which JSON could not carry
        "on": "shelf 3",
        "7": "seven",
        "racks": [1, 2.5, {"left": True}],
        "nothing": None,
        "odd keys & more": "ä",
    }


def test_anchors_and_merge_keys_save_repetition(tmp_path: Path) -> None:
    text = """
        nodes:
          static_nodes:
            - &worker
              node_id: a
              host: a
              max_concurrent: 3
              metadata: &about {rack: 1}
            - <<: *worker
              node_id: b
              host: b
            - <<: [{node_id: c, host: c, port: 9}, *worker]
              metadata: {<<: *about, rack: 2}
    """
    a, b, c = read(tmp_path, text).nodes.static_nodes
    assert (a.node_id, a.max_concurrent, a.metadata) == ("a", 3, {"rack": 1})
    assert (b.node_id, b.url, b.max_concurrent, b.metadata) == ("b", "http://b:8188", 3, {"rack": 1})
    assert (c.node_id, c.url, c.max_concurrent, c.metadata) == ("c", "http://c:9", 3, {"rack": 2})


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_file_may_have_the_byte_order_mark_that_windows_editors_write(tmp_path: Path, encoding: str) -> None:
    text = 'nodes: {static_nodes: [{node_id: "größe", host: a}]}\r\n'
    assert read(tmp_path, text.encode(encoding)).nodes.static_nodes[0].node_id == "größe"
