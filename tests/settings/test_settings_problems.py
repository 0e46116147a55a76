"""What is said about a bad file: every problem, with its line, its path and what would be right."""

from pathlib import Path

import pytest
from settings_support import complaints

from comfyproxy.settings import BadSettings, Problem, load


def test_everything_that_is_wrong_is_said_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = """
        nodes:
          static_nodes:
            - node_id: "a/b"
              host: "192.168.1.101"
              port: "8188"
              max_concurent: 4
            - node_id: b
              host: b
              max_concurrent: 0
          health_check:
            timeout: -1
        server:
          port: 70000
        outptus: shared
    """
    assert complaints(tmp_path, text) == [
        'my.yaml:3: nodes.static_nodes[0].node_id: expected a name that can be a folder, found "a/b": / is not allowed',
        "my.yaml:5: nodes.static_nodes[0].port: expected a whole number from 1 to 65535, "
        'found the text "8188"; write 8188, without quotes',
        "my.yaml:6: nodes.static_nodes[0].max_concurent: unknown key; did you mean max_concurrent?",
        "my.yaml:9: nodes.static_nodes[1].max_concurrent: expected a whole number from 1 up, found 0",
        "my.yaml:11: nodes.health_check.timeout: expected a number of seconds above 0, found -1",
        "my.yaml:13: server.port: expected a whole number from 0 to 65535, found 70000",
        "my.yaml:14: outptus: unknown key; did you mean outputs?",
    ]


def test_problems_can_be_read_by_programs(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("\nserver: {port: true}\n")
    with pytest.raises(BadSettings) as caught:
        load(file, environ={})
    message = "expected a whole number from 0 to 65535, found true"
    assert caught.value.problems == [Problem(str(file), message, "server.port", 2)]


def test_the_file_the_environment_and_the_command_line_are_all_looked_at(tmp_path: Path) -> None:
    assert complaints(
        tmp_path,
        "server: [",
        environ={"COMFYPROXY_SERVER_PORT": "high"},
        overrides={"store.type": "redis"},
        backends=["ftp://a"],
    ) == [
        "my.yaml:1: not valid YAML: expected the node content, but found '<stream end>' "
        "(while parsing a flow node that begins on line 1)",
        'COMFYPROXY_SERVER_PORT: server.port: expected a whole number from 0 to 65535, found the text "high"',
        'command line: expected a URL that begins with http:// or https://, found "ftp://a"',
        'command line: store.type: expected one of sqlite, memory, found the text "redis"',
    ]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("true", "found true"),
        ("8188.0", "found 8188.0"),
        ("'8188'", 'found the text "8188"; write 8188, without quotes'),
        ("'99999'", 'found the text "99999"'),
        ("http", 'found the text "http"'),
        ("", "found nothing"),
        ("[8188]", "found a list"),
        ("{a: 1}", "found a mapping"),
        ("-1", "found -1"),
        ("0xFFFFF", "found 0xFFFFF"),
        ("9" * 100, f"found {'9' * 60}..."),
    ],
)
def test_a_port_is_a_whole_number_in_its_range(tmp_path: Path, value: str, said: str) -> None:
    assert complaints(tmp_path, f"server:\n  port: {value}") == [
        f"my.yaml:2: server.port: expected a whole number from 0 to 65535, {said}"
    ]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (".inf", "found .inf"),
        (".nan", "found .nan"),
        ("0", "found 0"),
        ("-5", "found -5"),
        ("yes", "found yes"),
        ("30s", 'found the text "30s"'),
        ("1e1", 'found the text "1e1"; write 10.0, without quotes'),
        ("'30'", 'found the text "30"; write 30.0, without quotes'),
        ("1" + "0" * 400, f"found 1{'0' * 59}..."),
    ],
)
def test_an_interval_is_a_finite_number_above_zero(tmp_path: Path, value: str, said: str) -> None:
    assert complaints(tmp_path, f"nodes:\n  health_check:\n    interval: {value}") == [
        f"my.yaml:3: nodes.health_check.interval: expected a number of seconds above 0, {said}"
    ]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("'true'", 'found the text "true"; write true, without quotes'),
        ("1", "found 1; write true"),
        ("2", "found 2"),
        ("maybe", 'found the text "maybe"'),
        ("", "found nothing"),
    ],
)
def test_a_switch_is_true_or_false(tmp_path: Path, value: str, said: str) -> None:
    assert complaints(tmp_path, f"nodes:\n  load_balancing:\n    enable_failover: {value}") == [
        f"my.yaml:3: nodes.load_balancing.enable_failover: expected true or false, {said}"
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("logging: {level: INFO}", 'logging.level: expected one of debug, info, warning, error, found the text "INFO"; '
         "did you mean info?"),
        ("logging: {level: off}", "logging.level: expected one of debug, info, warning, error, found off"),
        ("store: {type: redis}", 'store.type: expected one of sqlite, memory, found the text "redis"'),
        ("store: {data_dir: 5}", 'store.data_dir: expected a path, found 5; write "5", with quotes'),
        ("store: {data_dir: ''}", 'store.data_dir: expected a path, found the text ""'),
        ('store: {data_dir: "a\\0b"}', "store.data_dir: expected a path, found one with control characters in it"),
        ("interrupt_without_id: [all]", "interrupt_without_id: expected one of all, reject, found a list"),
        ("outputs: sharde", 'outputs: expected a mapping or the word shared, found "sharde"'),
        ("outputs: true", 'outputs: expected a mapping or the word shared, found "true"'),
        ("server: 8188", 'server: expected a mapping, found "8188"'),
        ("nodes: [a]", "nodes: expected a mapping, found a list"),
        ("server: {cors_origin: https://a.example/}", 'server.cors_origin: expected "*" or one origin such as '
         'https://app.example, found "https://a.example/"; write "https://a.example"'),
        ("server: {cors_origin: a.example}", 'server.cors_origin: expected "*" or one origin such as '
         'https://app.example, found "a.example"'),
        ('server: {cors_origin: "https://a\\r\\nX: y"}', 'server.cors_origin: expected "*" or one origin such as '
         'https://app.example, found "https://a\\r\\nX: y"; write "https://a"'),
        ("server: {host: 'localhost:80'}", 'server.host: expected a host name or an IP address, found "localhost:80"; '
         'write "localhost", and port: 80'),
    ],
)  # fmt: skip
def test_what_is_wrong_says_what_is_expected_and_what_was_found(tmp_path: Path, text: str, said: str) -> None:
    assert complaints(tmp_path, text) == [f"my.yaml:1: {said}"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("node: {}", "node: unknown key; did you mean nodes?"),
        ("server: {Port: 1}", "server.Port: unknown key; did you mean port?"),
        ("server: {max-body-mb: 1}", "server.max-body-mb: unknown key; did you mean max_body_mb?"),
        ("health_check: {}", "health_check: unknown key; did you mean nodes.health_check?"),
        ("max_retries: 1", "max_retries: unknown key; did you mean nodes.load_balancing.max_retries?"),
        ("max_concurrent: 1", "max_concurrent: unknown key; did you mean nodes.static_nodes[].max_concurrent?"),
        ("logging: {colour: red}", "logging.colour: unknown key; known here are level, format"),
        ('"a\\nb": 1', "a\\nb: unknown key; known here are nodes, scheduling, server, store, queue, history, outputs, "
         "catalog, websocket, logging, "
         "interrupt_without_id"),
    ],
)  # fmt: skip
def test_an_unknown_key_names_the_one_that_was_meant(tmp_path: Path, text: str, said: str) -> None:
    assert complaints(tmp_path, text) == [f"my.yaml:1: {said}"]


def test_a_key_that_is_there_twice_is_told_with_both_lines(tmp_path: Path) -> None:
    text = """
        server:
          port: 1
          host: a
          port: 2
        nodes:
          static_nodes:
            - node_id: a
              host: a
              metadata:
                rack: 1
                rack: 2
        server: {}
    """
    assert complaints(tmp_path, text) == [
        "my.yaml:4: server.port: the key is there twice, on lines 2 and 4",
        "my.yaml:11: nodes.static_nodes[0].metadata.rack: the key is there twice, on lines 10 and 11",
        "my.yaml:12: server: the key is there twice, on lines 1 and 12",
    ]


def test_a_value_that_came_by_a_merge_has_the_line_where_it_is_written(tmp_path: Path) -> None:
    text = """
        nodes:
          static_nodes:
            - &a {node_id: a, host: a}
            - <<: &base
                max_concurrent: 0
              node_id: b
              host: b
    """
    assert complaints(tmp_path, text) == [
        "my.yaml:5: nodes.static_nodes[1].max_concurrent: expected a whole number from 1 up, found 0"
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("server:\n  port: 1\n host: a", "my.yaml:3: not valid YAML: expected <block end>, but found '<block mapping "
         "start>' (while parsing a block mapping that begins on line 1)"),
        ("server:\n\tport: 1", "my.yaml:2: not valid YAML: found character '\\t' that cannot start any token "
         "(while scanning for the next token)"),
        ("a: 'b\nc: d\n", "my.yaml:3: not valid YAML: found unexpected end of stream "
         "(while scanning a quoted scalar that begins on line 1)"),
        ("a: *b", "my.yaml:1: not valid YAML: found undefined alias 'b'"),
        ("a: 1\n---\nb: 1", "my.yaml:2: not valid YAML: but found another document "
         "(expected a single document in the stream that begins on line 1)"),
        (b"server:\n  host: \xff", "my.yaml:2: not valid YAML: it is not UTF-8"),
        (b"server:\n  host: a\0b", "my.yaml:2: not valid YAML: a control character is not allowed"),
        ("[" * 3000, "my.yaml: not usable: it is nested too deeply"),
        ("&a {server: *a}", "my.yaml:1: server: an anchor must not contain itself"),
        ("a: 1", "my.yaml:1: a: unknown key; known here are nodes, scheduling, server, store, queue, history, outputs, "
         "catalog, websocket, logging, interrupt_without_id"),
        ("- a", "my.yaml:1: expected a mapping, found a list"),
        ("\nhello", "my.yaml:1: expected a mapping, found \"hello\""),
        ("server:\n  ? [a]\n  : 1", "my.yaml:2: server: a key must be a text"),
        ("server:\n  <<: 5", "my.yaml:2: server.<<: expected a mapping to merge"),
        ("server:\n  port: !!int abc", "my.yaml:2: server.port: this is no !!int"),
        ("server:\n  port: !!float abc", "my.yaml:2: server.port: this is no !!float"),
        ("server:\n  port: !!bool abc", "my.yaml:2: server.port: this is no !!bool"),
        ("server:\n  port: !secret p", "my.yaml:2: server.port: the tag !secret is not supported"),
        ("server:\n  port: !!python/object/apply:os.system [ls]",
         "my.yaml:2: server.port: the tag !!python/object/apply:os.system is not supported"),
        ("nodes: !!set {a}", "my.yaml:1: nodes: the tag !!set is not supported"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_usable_yaml_says_why_and_where(tmp_path: Path, text: str | bytes, said: str) -> None:
    assert complaints(tmp_path, text)[0] == said


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    absent, folder = tmp_path / "absent.yaml", tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(BadSettings) as caught:
        load(absent, environ={})
    assert str(caught.value) == f"{absent}: No such file or directory"
    with pytest.raises(BadSettings, match="folder: "):
        load(folder, environ={})
