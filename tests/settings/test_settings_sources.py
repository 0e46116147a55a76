"""The command line comes before the environment, the environment before the file."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from settings_support import complaints, read, refused

from comfyproxy.settings import Settings, load
from comfyproxy.settings.loading import variables

FILE = "server: {port: 1}\nnodes: {static_nodes: [{node_id: of-file, host: a}]}"


def names(settings: Settings) -> list[str]:
    return [node.node_id for node in settings.nodes.static_nodes]


def test_a_value_comes_from_the_first_source_that_has_it(tmp_path: Path) -> None:
    environ = {"COMFYPROXY_SERVER_PORT": "2"}
    assert read(tmp_path, FILE).server.port == 1
    assert read(tmp_path, FILE, environ=environ).server.port == 2
    assert read(tmp_path, FILE, environ=environ, overrides={"server.port": 3}).server.port == 3
    assert read(tmp_path, FILE, environ=environ, overrides={"server.port": None}).server.port == 2


def test_backends_replace_those_of_the_source_below(tmp_path: Path) -> None:
    environ = {"COMFYPROXY_BACKENDS": "of-environment=b"}
    assert names(read(tmp_path, FILE)) == ["of-file"]
    assert names(read(tmp_path, FILE, environ=environ)) == ["of-environment"]
    assert names(read(tmp_path, FILE, environ=environ, backends=["x=c", "y=d"])) == ["x", "y"]


def test_what_is_replaced_must_be_right_all_the_same(tmp_path: Path) -> None:
    assert complaints(tmp_path, "server: {port: x}", overrides={"server.port": 3}) == [
        'my.yaml:1: server.port: expected a whole number from 0 to 65535, found the text "x"'
    ]


def test_backends_in_the_environment_are_separated_by_spaces_or_commas() -> None:
    texts = ["a b c=d:1", "a,b,c=d:1", " a, b\n\tc=d:1 ,"]
    assert [names(load(None, environ={"COMFYPROXY_BACKENDS": text})) for text in texts] == [["a", "b", "c"]] * 3


@pytest.mark.parametrize(
    ("name", "text", "path", "value"),
    [
        ("COMFYPROXY_NODES_HEALTH_CHECK_INTERVAL", "2.5", "nodes.health_check.interval", 2.5),
        ("COMFYPROXY_NODES_HEALTH_CHECK_TIMEOUT", " 2 ", "nodes.health_check.timeout", 2.0),
        ("COMFYPROXY_NODES_LOAD_BALANCING_ENABLE_FAILOVER", "No", "nodes.load_balancing.enable_failover", False),
        ("COMFYPROXY_OUTPUTS_SHARED", "1", "outputs.shared", True),
        ("COMFYPROXY_STORE_DATA_DIR", "/data", "store.data_dir", Path("/data")),
        ("COMFYPROXY_SERVER_CORS_ORIGIN", "*", "server.cors_origin", "*"),
        ("COMFYPROXY_INTERRUPT_WITHOUT_ID", "reject", "interrupt_without_id", "reject"),
        ("COMFYPROXY_LOGGING_LEVEL", "", "logging.level", "info"),
        ("COMFYPROXY_BACKENDS", " ", "nodes.static_nodes", ()),
    ],
)
def test_the_environment_sets_any_key_by_its_path(name: str, text: str, path: str, value: Any) -> None:
    found: Any = load(None, environ={name: text})
    for key in path.split("."):
        found = getattr(found, key)
    assert found == value


def test_every_key_outside_of_lists_has_a_variable_of_its_own() -> None:
    def paths(section: Any, above: str = "") -> set[str]:
        found = set()
        for field in dataclasses.fields(section):
            value = getattr(section, field.name)
            inner = dataclasses.is_dataclass(value)
            found |= paths(value, f"{above}{field.name}.") if inner else {f"{above}{field.name}"}
        return found

    lists = {"nodes.static_nodes", "nodes.load_balancing.retry_on"}
    assert set(variables().values()) == paths(Settings()) - lists
    assert len(variables()) == len(set(variables().values()))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("COMFYPROXY_SERVER_PRT", "1", "unknown variable; did you mean COMFYPROXY_SERVER_PORT?"),
        ("COMFYPROXY_PORT", "9000", "unknown variable; did you mean COMFYPROXY_SERVER_PORT?"),
        ("COMFYPROXY_BACKEND", "a", "unknown variable; did you mean COMFYPROXY_BACKENDS?"),
        ("COMFYPROXY_SERVER_PORT", "70000", "server.port: expected a whole number from 0 to 65535, found 70000"),
        ("COMFYPROXY_OUTPUTS_SHARED", "2", 'outputs.shared: expected true or false, found the text "2"'),
        ("COMFYPROXY_WEBSOCKET_HEARTBEAT", "inf",
         "websocket.heartbeat: expected a number of seconds above 0, found inf"),
        ("COMFYPROXY_LOGGING_LEVEL", "warn",
         'logging.level: expected one of debug, info, warning, error, found the text "warn"; did you mean warning?'),
        ("COMFYPROXY_BACKENDS", "a, ws://b", 'expected a URL that begins with http:// or https://, found "ws://b"'),
    ],
)  # fmt: skip
def test_a_variable_that_is_wrong_is_told_by_its_name(name: str, text: str, said: str) -> None:
    assert refused(environ={name: text}) == [f"{name}: {said}"]


def test_other_variables_are_not_ours() -> None:
    environ = {"PATH": "/bin", "COMFYPROXY_CONFIG": "my.yaml", "COMFYPROXY": "x", "comfyproxy_x": "y"}
    assert load(None, environ=environ) == Settings()


@pytest.mark.parametrize("service", ["COMFYPROXY", "COMFYPROXY_SERVER"])
def test_what_kubernetes_puts_next_to_a_service_of_our_name_is_no_setting(service: str) -> None:
    environ = {
        f"{service}_SERVICE_HOST": "10.0.0.1",
        f"{service}_SERVICE_PORT": "8188",
        f"{service}_SERVICE_PORT_HTTP": "8188",
        f"{service}_PORT": "tcp://10.0.0.1:8188",
        f"{service}_PORT_8188_TCP": "tcp://10.0.0.1:8188",
        f"{service}_PORT_8188_TCP_PROTO": "tcp",
        f"{service}_PORT_8188_TCP_PORT": "8188",
        f"{service}_PORT_8188_TCP_ADDR": "10.0.0.1",
    }
    assert load(None, environ=environ) == Settings()


def test_the_command_line_may_set_values_of_their_type_or_as_text() -> None:
    settings = load(
        None,
        environ={},
        overrides={"server.port": "9000", "store.data_dir": Path("/d"), "nodes.health_check.interval": 3},
    )
    assert (settings.server.port, settings.store.data_dir, settings.nodes.health_check.interval) == (
        9000,
        Path("/d"),
        3.0,
    )


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("server.prt", 1, "unknown key; did you mean server.port?"),
        ("x", 1, "unknown key"),
        ("nodes.static_nodes", [], "unknown key"),
        ("server.port", True, "expected a whole number from 0 to 65535, found True"),
        ("server.port", 70000, "expected a whole number from 0 to 65535, found 70000"),
    ],
)
def test_what_is_wrong_on_the_command_line_is_told(path: str, value: Any, said: str) -> None:
    (line,) = refused(overrides={path: value})
    assert line.startswith(f"command line: {path}: {said}")
