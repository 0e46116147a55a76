"""GET /view finds the file that the history named."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from proxy_support import Proxy


@pytest.fixture
async def proxy(tmp_path: Path) -> AsyncIterator[Proxy]:
    async with Proxy(tmp_path, "a", "b", "c") as proxy:
        for name in ("a", "b"):
            proxy[name].put("x.png", f"made by {name}".encode(), type="output")
            proxy[name].put("x.png", f"made by {name}, deeper".encode(), type="output", subfolder="sub")
            proxy[name].put("t.png", f"temp of {name}".encode(), type="temp")
        yield proxy


async def seen(proxy: Proxy, query: str, *, path: str = "/view") -> tuple[int, bytes]:
    async with proxy.session.get(f"{path}?{query}") as answer:
        return answer.status, await answer.read()


@pytest.mark.parametrize("path", ["/view", "/api/view"])
async def test_files_of_one_name_are_told_apart_by_their_backend(proxy: Proxy, path: str) -> None:
    assert await seen(proxy, "filename=x.png&subfolder=a&type=output", path=path) == (200, b"made by a")
    assert await seen(proxy, "filename=x.png&subfolder=b&type=output", path=path) == (200, b"made by b")
    assert await seen(proxy, "filename=x.png&subfolder=b/sub", path=path) == (200, b"made by b, deeper")
    assert await seen(proxy, "filename=x.png&subfolder=b%5Csub", path=path) == (200, b"made by b, deeper")
    assert await seen(proxy, "filename=t.png&subfolder=b&type=temp", path=path) == (200, b"temp of b")


async def test_the_rest_of_the_query_is_not_touched(proxy: Proxy) -> None:
    await seen(proxy, "filename=x%20y+z.png&subfolder=b%2Fs%20p&type=output&preview=webp;90&channel=rgb&rand=0.1&x")
    assert proxy["b"].seen == [
        "GET /view?filename=x%20y+z.png&subfolder=s%20p&type=output&preview=webp;90&channel=rgb&rand=0.1&x"
    ]


async def test_an_annotated_name_may_hold_the_prefix(proxy: Proxy) -> None:
    await seen(proxy, "filename=b/sub/x.png%20[output]")
    assert proxy["b"].seen == ["GET /view?filename=sub/x.png%20%5Boutput%5D"]


async def test_range_conditions_and_head_are_the_backends_work(proxy: Proxy) -> None:
    url = "/view?filename=x.png&subfolder=b"
    async with proxy.session.get(url, headers={"Range": "bytes=2-3"}) as answer:
        assert (answer.status, await answer.read()) == (206, b"de")
        assert answer.headers["Content-Range"] == "bytes 2-3/9"
    async with proxy.session.head(url) as answer:
        assert (answer.status, answer.headers["Content-Length"]) == (200, "9")
        etag = answer.headers["ETag"]
    async with proxy.session.get(url, headers={"If-None-Match": etag}) as answer:
        assert (answer.status, await answer.read()) == (304, b"")


async def test_an_input_is_looked_for_at_home_and_then_where_it_is(proxy: Proxy) -> None:
    proxy["c"].put("in.png", b"input", subfolder="a")
    assert await seen(proxy, "filename=in.png&subfolder=a&type=input") == (200, b"input")
    proxy["a"].put("in.png", b"home's", subfolder="a")
    assert await seen(proxy, "filename=in.png&subfolder=a&type=input") == (200, b"home's")


async def test_an_output_without_a_prefix_is_looked_for_everywhere(proxy: Proxy) -> None:
    proxy["c"].put("only.png", b"made by c", type="output")
    assert await seen(proxy, "filename=only.png") == (200, b"made by c")
    assert await seen(proxy, "filename=x.png") == (200, b"made by a")


async def test_what_nobody_has_is_homes_404(proxy: Proxy) -> None:
    async with proxy.session.get("/view?filename=none.png") as answer:
        assert (answer.status, await answer.read()) == (404, b"")
        assert answer.headers["X-Comfyproxy-Backend"] == "a"
        assert "Content-Type" not in answer.headers


async def test_a_backend_says_itself_what_is_wrong_with_a_query(proxy: Proxy) -> None:
    assert await seen(proxy, "filename=../x.png") == (400, b"")
    assert await seen(proxy, "filename=x.png&subfolder=../..") == (403, b"")
    assert proxy["b"].seen == []


async def test_the_files_of_a_dead_backend_are_not_found(proxy: Proxy) -> None:
    await proxy.dies("b")
    assert await seen(proxy, "filename=x.png&subfolder=b") == (404, b"")
    assert not proxy.backend("b").health.healthy
    assert await seen(proxy, "filename=x.png&subfolder=b") == (404, b"")


async def test_the_files_of_a_drained_backend_are_still_seen(proxy: Proxy) -> None:
    proxy.backend("b").is_drained = True
    assert await seen(proxy, "filename=x.png&subfolder=b") == (200, b"made by b")


async def test_an_input_is_found_although_home_is_dead(proxy: Proxy) -> None:
    proxy["c"].put("in.png", b"input")
    await proxy.dies("a")
    assert await seen(proxy, "filename=in.png&type=input") == (200, b"input")


async def test_a_single_backend_has_no_prefixes(tmp_path: Path) -> None:
    async with Proxy(tmp_path, "a") as proxy:
        proxy["a"].put("x.png", b"picture", type="output", subfolder="a")
        assert await seen(proxy, "filename=x.png&subfolder=a") == (200, b"picture")


async def test_with_shared_outputs_a_subfolder_is_a_subfolder_first(tmp_path: Path) -> None:
    async with Proxy(tmp_path, "a", "b", prefixes=False) as proxy:
        proxy["a"].put("x.png", b"in a folder called b", type="output", subfolder="b")
        proxy["b"].put("old.png", b"from before outputs were shared", type="output")
        assert await seen(proxy, "filename=x.png&subfolder=b") == (200, b"in a folder called b")
        assert await seen(proxy, "filename=old.png&subfolder=b") == (200, b"from before outputs were shared")
