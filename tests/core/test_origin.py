"""Requests that a page of another origin made, and those that only look like it."""

import pytest

from comfyproxy.core.origin import is_foreign


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("127.0.0.1:8188", "http://evil.example"),
        ("localhost:8188", "http://evil.example"),
        ("LOCALHOST:8188", "https://evil.example:8188"),
        ("[::1]:8188", "http://evil.example"),
        ("127.0.0.1:8188", "http://127.0.0.1:3000"),
        ("127.0.0.1:8188", "http://localhost:8188"),
        ("comfy.localhost", "http://evil.example"),
        ("0.0.0.0:8188", "http://evil.example"),
        ("127.0.0.1:8188", "http://evil.example:99999"),
        ("[::1", "http://evil.example"),
    ],
)
def test_another_origin_on_a_loopback_host_is_foreign(host: str, origin: str) -> None:
    assert is_foreign(host, origin, None)


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("127.0.0.1:8188", "http://127.0.0.1:8188"),
        ("LocalHost:8188", "http://localhost:8188"),
        ("127.0.0.1:8188", "http://127.0.0.1"),
        ("127.0.0.1", "http://127.0.0.1:8188"),
        ("[::1]:8188", "http://[::1]:8188"),
        ("127.0.0.1:8188", "null"),
        ("127.0.0.1:8188", None),
        (None, "http://evil.example"),
        ("comfy.lan:8188", "http://evil.example"),
        ("192.168.1.5:8188", "http://evil.example"),
        ("", ""),
    ],
)
def test_the_own_page_and_a_host_on_the_network_are_not_foreign(host: str | None, origin: str | None) -> None:
    assert not is_foreign(host, origin, None)


def test_what_the_browser_calls_cross_site_is_foreign_on_every_host() -> None:
    assert is_foreign("comfy.lan", None, "cross-site")
    assert not is_foreign("comfy.lan", None, "same-origin")
    assert not is_foreign("comfy.lan", None, "same-site")


def test_a_name_known_to_mean_this_machine_counts_as_loopback() -> None:
    assert not is_foreign("workstation:8188", "http://evil.example", None)
    assert is_foreign("workstation:8188", "http://evil.example", None, loopback_names={"workstation"})
