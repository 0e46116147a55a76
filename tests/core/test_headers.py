"""Which headers go on, and which end at the proxy."""

import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from comfyproxy.core.headers import HOP_BY_HOP, end_to_end


def test_headers_of_the_connection_end_here_in_any_case() -> None:
    for name in HOP_BY_HOP:
        for spelling in (name, name.upper(), name.title()):
            assert end_to_end({spelling: "x", "ETag": "y"}) == {"ETag": "y"}


def test_all_others_go_on_with_their_duplicates_in_their_order() -> None:
    headers = CIMultiDict([("Set-Cookie", "a=1"), ("Content-Length", "3"), ("Set-Cookie", "b=2"), ("TE", "x")])
    kept = list(end_to_end(CIMultiDictProxy(headers)).items())
    assert kept == [("Set-Cookie", "a=1"), ("Content-Length", "3"), ("Set-Cookie", "b=2")]


@pytest.mark.parametrize("name", ["Connection", "connection"])
def test_what_the_connection_names_ends_here_too(name: str) -> None:
    headers = {name: "close, X-Mine ,x-other", "x-mine": "1", "X-Other": "2", "X-Third": "3"}
    assert end_to_end(headers) == {"X-Third": "3"}


def test_the_connection_may_name_headers_in_several_lines() -> None:
    headers = CIMultiDict(
        [("Connection", "close"), ("X-A", "1"), ("connection", "X-A, X-B"), ("X-B", "2"), ("X-C", "3")]
    )
    assert end_to_end(headers) == {"X-C": "3"}


def test_a_header_without_a_name_between_commas_is_none() -> None:
    assert end_to_end({"Connection": ", ,", "X": "1"}) == {"X": "1"}
