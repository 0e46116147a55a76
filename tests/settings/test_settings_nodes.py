"""Backends: what they are called, where they are, and that no two are one."""

import dataclasses
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from settings_support import complaints, read, refused
from yarl import URL

from comfyproxy.settings import NodeSettings, load
from comfyproxy.settings.addresses import parse_url
from comfyproxy.settings.backends import derived_name
from comfyproxy.settings.rules import name_fault


def of_file(*nodes: str) -> str:
    """Return a file with one node on each line, from the third on."""
    return "nodes:\n  static_nodes:\n" + "".join(f"    - {{{node}}}\n" for node in nodes)


@pytest.mark.parametrize(
    ("written", "host", "port", "url"),
    [
        ("host: GPU-1.lan", "gpu-1.lan", 8188, "http://gpu-1.lan:8188"),
        ("host: comfy_1, port: 80", "comfy_1", 80, "http://comfy_1"),
        ("host: '::1'", "::1", 8188, "http://[::1]:8188"),
        ("host: '[2001:DB8::0:1]', port: 9", "2001:db8::1", 9, "http://[2001:db8::1]:9"),
        ("host: 'fe80::1%eth0'", "fe80::1%eth0", 8188, "http://[fe80::1%25eth0]:8188"),
        ("url: 'http://a:8188/'", "a", 8188, "http://a:8188"),
        ("url: 'HTTP://A'", "a", 80, "http://a"),
        ("url: 'https://a.example/gpu/1/'", "a.example", 443, "https://a.example/gpu/1"),
        ("url: 'https://a.example:443/Gpu'", "a.example", 443, "https://a.example/Gpu"),
        ("url: 'http://[::1]:8188/x'", "::1", 8188, "http://[::1]:8188/x"),
        ("url: 'https://a/b', host: a, port: 443", "a", 443, "https://a/b"),
    ],
)
def test_host_port_and_url_are_all_there_whichever_was_given(
    tmp_path: Path, written: str, host: str, port: int, url: str
) -> None:
    (node,) = read(tmp_path, of_file(f"node_id: n, {written}")).nodes.static_nodes
    assert (node.host, node.port, node.url) == (host, port, url)
    assert (URL(node.url).host, URL(node.url).port) == (host, port)
    assert dataclasses.replace(node, max_concurrent=9).url == url


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("host: ''", '.host: expected a text, found the text ""'),
        ("host: 'http://a'", '.host: expected a host name or an IP address, found a whole URL: "http://a"'),
        ("host: 'a:81'", '.host: expected a host name or an IP address, found "a:81"; write "a", and port: 81'),
        ("host: a/b", '.host: expected a host name or an IP address, found "a/b"'),
        ("host: a..b", '.host: expected a host name or an IP address, found "a..b"'),
        ("host: '[a]'", '.host: expected a host name or an IP address, found "[a]"'),
        ("host: '1:2:3'", '.host: expected a host name or an IP address, found "1:2:3"'),
        ("host: 10.5", '.host: expected a text, found 10.5; write "10.5", with quotes'),
        ("url: 'a:8188'", '.url: expected a URL such as http://gpu-1:8188, found "a:8188"; write "http://a:8188"'),
        ("url: 'ws://a'", '.url: expected a URL that begins with http:// or https://, found "ws://a"'),
        ("url: 'http://'", '.url: expected a URL with a host in it, found "http://"'),
        ("url: 'http://a b'", ".url: expected a URL, found one with spaces, backslashes or control characters in it"),
        ("url: 'http://a/?b=c'", '.url: expected a base URL, without "?" and "#", found "http://a/?b=c"'),
        ("url: 'http://a/#'", '.url: expected a base URL, without "?" and "#", found "http://a/#"'),
        ("url: 'http://a:0'", '.url: expected a port from 1 to 65535, found "http://a:0"'),
        ("url: 'http://a:70000'", '.url: expected a URL such as http://gpu-1:8188, found "http://a:70000" '
         "(Port out of range 0-65535)"),
        ("url: 'http://[::1'",
         '.url: expected a URL such as http://gpu-1:8188, found "http://[::1" (Invalid IPv6 URL)'),
        ("url: 'http://a', host: b", ".host: b contradicts url, which says a; write one or the other"),
        ("url: 'http://a', port: 8188", ".port: 8188 contradicts url, which says 80; write one or the other"),
        ("max_concurrent: 1", ": host is missing (or url in its place)"),
        ("host: a, capabilities: x", '.capabilities: expected a list, found "x"; write [x]'),
        ("host: a, capabilities: [x, 1]", '.capabilities[1]: expected a text, found 1; write "1", with quotes'),
        ("host: a, capabilities: ['  ']", ".capabilities[0]: expected a text, found an empty one"),
        ("host: a, metadata: x", '.metadata: expected a mapping, found "x"'),
    ],
)  # fmt: skip
def test_what_is_no_backend_is_told_with_its_line(tmp_path: Path, written: str, said: str) -> None:
    assert complaints(tmp_path, of_file("node_id: ok, host: ok", f"node_id: n, {written}")) == [
        f"my.yaml:4: nodes.static_nodes[1]{said}"
    ]


def test_a_password_in_a_url_is_refused_and_not_repeated(tmp_path: Path) -> None:
    (line,) = complaints(tmp_path, of_file("node_id: n, url: 'http://me:hunter2@a'"))
    assert line == (
        "my.yaml:3: nodes.static_nodes[0].url: "
        "expected a URL without a user name or password (they would appear in logs)"
    )


def test_a_node_needs_a_name(tmp_path: Path) -> None:
    assert complaints(tmp_path, of_file("host: a", "max_concurrent: 1")) == [
        "my.yaml:3: nodes.static_nodes[0]: node_id is missing",
        "my.yaml:4: nodes.static_nodes[1]: node_id is missing",
        "my.yaml:4: nodes.static_nodes[1]: host is missing (or url in its place)",
    ]


def test_nodes_are_a_list(tmp_path: Path) -> None:
    text = "nodes:\n  static_nodes:\n    node_id: a\n    host: a\n"
    assert complaints(tmp_path, text) == [
        'my.yaml:3: nodes.static_nodes: expected a list, found a mapping; begin each entry with "- "'
    ]


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("''", None),
        ("a/b", "/ is not allowed"),
        ("'a\\b'", "\\ is not allowed"),
        ("a:b", ": is not allowed"),
        ("a*", "* is not allowed"),
        ("a?", "? is not allowed"),
        ("'\"a'", '" is not allowed'),
        ("<a", "< is not allowed"),
        ("'>a'", "> is not allowed"),
        ("a|b", "| is not allowed"),
        ('"a\\x07"', "control characters are not allowed"),
        (".", "it begins or ends with a space or a dot"),
        ("..", "it begins or ends with a space or a dot"),
        (".a", "it begins or ends with a space or a dot"),
        ("a.", "it begins or ends with a space or a dot"),
        ("' a'", "it begins or ends with a space or a dot"),
        ("'a '", "it begins or ends with a space or a dot"),
        ("nul", "Windows keeps this name for a device"),
        ("Com1.lan", "Windows keeps this name for a device"),
        ("a" * 65, "it is longer than 64 characters"),
    ],
)
def test_a_name_must_be_fit_for_a_folder(tmp_path: Path, name: str, fault: str | None) -> None:
    (line,) = complaints(tmp_path, f"nodes:\n  static_nodes:\n    - node_id: {name}\n      host: a\n")
    assert line.startswith("my.yaml:3: nodes.static_nodes[0].node_id: expected a ")
    assert line.endswith(fault or 'found the text ""')


@pytest.mark.parametrize("name", ["a", "comfyui-worker-1", "GPU 1", "größe", "a.b", "10.0.0.1", "console", "a" * 64])
def test_ordinary_names_are_fine(tmp_path: Path, name: str) -> None:
    assert read(tmp_path, of_file(f'node_id: "{name}", host: a')).nodes.static_nodes[0].node_id == name


def test_two_nodes_of_one_name_are_refused_also_where_only_case_differs(tmp_path: Path) -> None:
    text = of_file("node_id: gpu, host: a", "node_id: GPU, host: b", "node_id: gpu, host: c, max_concurrent: 0")
    assert complaints(tmp_path, text) == [
        'my.yaml:4: nodes.static_nodes[1].node_id: the name "GPU" is taken by nodes.static_nodes[0] (line 3)',
        "my.yaml:5: nodes.static_nodes[2].max_concurrent: expected a whole number from 1 up, found 0",
        'my.yaml:5: nodes.static_nodes[2].node_id: the name "gpu" is taken by nodes.static_nodes[0] (line 3)',
    ]


def test_two_nodes_of_one_url_are_refused_however_it_is_spelt(tmp_path: Path) -> None:
    text = of_file("node_id: a, host: gpu, port: 80", "node_id: b, url: 'HTTP://GPU:80/'", "node_id: c, host: gpu")
    assert complaints(tmp_path, text) == [
        "my.yaml:4: nodes.static_nodes[1].url: http://gpu is also nodes.static_nodes[0] (line 3); name a server once"
    ]


def test_a_path_below_one_host_is_another_server(tmp_path: Path) -> None:
    assert (
        len(
            read(tmp_path, of_file("node_id: a, url: 'http://h/a'", "node_id: b, url: 'http://h/b'")).nodes.static_nodes
        )
        == 2
    )


@pytest.mark.parametrize(
    ("text", "name", "url"),
    [
        ("http://gpu-a:8188", "gpu-a", "http://gpu-a:8188"),
        ("http://gpu-a:9000/", "gpu-a-9000", "http://gpu-a:9000"),
        ("http://gpu-a", "gpu-a-80", "http://gpu-a"),
        ("https://gpu.example/comfy", "gpu.example-443", "https://gpu.example/comfy"),
        ("10.0.0.1:8189", "10.0.0.1-8189", "http://10.0.0.1:8189"),
        ("gpu-a", "gpu-a", "http://gpu-a:8188"),
        ("[fe80::1]:8188", "fe80--1", "http://[fe80::1]:8188"),
        ("[::]:8188", "node", "http://[::]:8188"),
        ("aux:8188", "node-aux", "http://aux:8188"),
        ("main=gpu-a:8188", "main", "http://gpu-a:8188"),
        ("main=http://gpu-a/a=b", "main", "http://gpu-a/a=b"),
    ],
)
def test_a_backend_on_the_command_line_is_a_url_with_or_without_a_name(text: str, name: str, url: str) -> None:
    (node,) = load(None, backends=[text], environ={}).nodes.static_nodes
    assert node == NodeSettings(node_id=name, url=url)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("=http://a", 'expected [NAME=]URL, found "=http://a"'),
        ("a=", 'expected a URL with a host in it, found "http://"'),
        ("", 'expected a URL with a host in it, found "http://"'),
        ("..=http://a", 'expected a name that can be a folder, found "..": it begins or ends with a space or a dot'),
        ("http//gpu-1", 'expected a URL such as http://gpu-1:8188, found "http//gpu-1"; "://" is missing'),
        ("https:gpu-1", 'expected a URL such as http://gpu-1:8188, found "https:gpu-1"; "://" is missing'),
        ("::1", 'expected a URL such as http://gpu-1:8188, found "::1"; an IPv6 address needs brackets'),
        ("a:x", "expected a URL such as http://gpu-1:8188, found \"http://a:x\" "
         "(Port could not be cast to integer value as 'x')"),
    ],
)  # fmt: skip
def test_what_is_no_backend_on_the_command_line_is_told(text: str, said: str) -> None:
    assert refused(backends=["ok:1", text]) == [f"command line: {said}"]


def test_backends_on_the_command_line_must_differ_too() -> None:
    assert refused(backends=["https://h/a", "https://h/b", "x=https://h/a"]) == [
        'command line: the name "h-443" is taken by "h-443" (https://h/a); write NAME=URL to give it another',
        'command line: https://h/a is also "h-443" (https://h/a); name a server once',
    ]


LABEL = st.text(string.ascii_letters + string.digits + "-_ä", min_size=1, max_size=63)


@given(
    host=st.lists(LABEL, min_size=1, max_size=3).map(".".join) | st.ip_addresses(v=6).map("[{}]".format),
    port=st.integers(1, 65535),
)
def test_any_host_makes_a_name_that_is_fit(host: str, port: int) -> None:
    assert name_fault(derived_name(parse_url(f"http://{host}:{port}"))) is None


@given(st.text(max_size=70))
def test_any_text_is_a_url_or_a_value_error(text: str) -> None:
    try:
        address = parse_url(f"http://{text}")
    except ValueError:
        return
    assert parse_url(str(address)) == address


def test_an_address_that_is_none_is_refused_in_code_as_well() -> None:
    with pytest.raises(ValueError, match="host is missing"):
        NodeSettings(node_id="a")
    with pytest.raises(ValueError, match="contradict"):
        dataclasses.replace(NodeSettings(node_id="a", host="a"), port=9)
