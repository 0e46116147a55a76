"""A prompt finds the files it names on whichever backend it lands."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from files_support import IMAGE_INPUTS, Servers

from comfyproxy.core.errors import NotDelivered
from comfyproxy.core.files import FileRef
from comfyproxy.core.health import Health


@pytest.fixture
async def servers(tmp_path: Path) -> AsyncIterator[Servers]:
    servers = Servers(tmp_path, "a", "b", "c")
    await servers.files.open()
    yield servers
    await servers.files.close()


def copied(name: str, *, owner: str = "a", type: str = "output", sub: str = "") -> FileRef:
    return FileRef(name, f"comfyproxy/{owner}/{type}" + (f"/{sub}" if sub else ""), "input")


async def test_an_output_on_its_own_backend_loses_only_its_prefix(servers: Servers) -> None:
    assert await servers.prepare("a/x.png [output]", "a") == "x.png [output]"
    assert await servers.prepare("a/sub/x.png [temp]", "a") == "sub/x.png [temp]"
    assert servers["a"].calls == []


async def test_an_output_of_another_backend_is_copied_into_the_input_folder(servers: Servers) -> None:
    servers["a"].put("x.png", b"picture", type="output")
    servers["a"].put("y.png", b"another", subfolder="sub", type="temp")
    assert await servers.prepare("a/x.png [output]", "b") == "comfyproxy/a/output/x.png"
    assert await servers.prepare("a/sub/y.png [temp]", "b") == "comfyproxy/a/temp/sub/y.png"
    assert servers["b"].files == {copied("x.png"): b"picture", copied("y.png", type="temp", sub="sub"): b"another"}


async def test_an_output_is_copied_once_until_it_changes(servers: Servers) -> None:
    ref = servers["a"].put("x.png", b"one", type="output")
    for _ in range(3):
        await servers.prepare("a/x.png [output]", "b")
    assert servers["b"].count("upload") == 1
    servers["a"].files[ref] = b"two"
    assert await servers.prepare("a/x.png [output]", "b") == "comfyproxy/a/output/x.png"
    assert servers["b"].files[copied("x.png")] == b"two"


async def test_a_copy_that_outlived_its_source_is_used(servers: Servers) -> None:
    servers["a"].put("x.png", b"one", type="output")
    await servers.prepare("a/x.png [output]", "b")
    servers.goes_away("a")
    assert await servers.prepare("a/x.png [output]", "b") == "comfyproxy/a/output/x.png"
    assert await servers.prepare("a/x.png [output]", "c") == "a/x.png [output]"


async def test_an_output_that_is_nowhere_keeps_its_name(servers: Servers) -> None:
    assert await servers.prepare("a/x.png [output]", "b") == "a/x.png [output]"
    assert await servers.prepare("x.png [output]", "b") == "x.png [output]"


async def test_an_output_without_a_prefix_is_used_where_it_is_and_else_copied(servers: Servers) -> None:
    servers["b"].put("x.png", b"picture", type="output")
    assert await servers.prepare("x.png [output]", "b") == "x.png [output]"
    assert await servers.prepare("x.png [output]", "c") == "comfyproxy/b/output/x.png"


async def test_an_input_put_on_one_backend_by_hand_is_found_and_copied(servers: Servers) -> None:
    ref = servers["c"].put("x.png", b"picture", subfolder="sub")
    assert await servers.prepare("sub/x.png", "a") == "sub/x.png"
    assert servers["a"].files == {ref: b"picture"}


async def test_an_input_that_is_there_costs_one_question_until_the_backend_was_away(servers: Servers) -> None:
    ref = servers["a"].put("x.png", b"picture")
    for _ in range(3):
        assert await servers.prepare("x.png", "a") == "x.png"
    assert servers["a"].calls == ["stat input /x.png"]
    servers["b"].put("x.png", b"picture")
    del servers["a"].files[ref]
    servers.goes_away("a")
    servers.comes_back("a")
    await servers.prepare("x.png", "a")
    assert servers["a"].files[ref] == b"picture"


async def test_a_name_that_only_looks_like_a_file_costs_nothing(servers: Servers) -> None:
    await servers.prepare("model.safetensors", "a", class_type="CheckpointLoaderSimple")
    assert not any(client.calls for client in servers.clients.values())


async def test_a_missing_input_is_not_searched_again_at_once(servers: Servers) -> None:
    await servers.prepare("x.png", "a")
    await servers.prepare("x.png", "a")
    assert servers["b"].count("stat") == 1
    servers["b"].put("x.png", b"late")
    servers.time += 60
    assert await servers.prepare("x.png", "a") == "x.png"
    assert servers["a"].files[FileRef("x.png", "", "input")] == b"late"


async def test_several_prompts_that_want_one_file_copy_it_once(servers: Servers) -> None:
    servers["a"].put("x.png", b"picture", type="output")
    servers["b"].gate = asyncio.Event()
    prompts = [asyncio.create_task(servers.prepare("a/x.png [output]", "b")) for _ in range(5)]
    await servers["b"].uploading.wait()
    servers["b"].gate.set()
    assert await asyncio.gather(*prompts) == ["comfyproxy/a/output/x.png"] * 5
    assert servers["b"].count("upload") == 1


async def test_a_prompt_that_is_given_up_leaves_the_copy_to_the_others(servers: Servers) -> None:
    servers["a"].put("x.png", b"picture", type="output")
    servers["b"].gate = asyncio.Event()
    first = asyncio.create_task(servers.prepare("a/x.png [output]", "b"))
    second = asyncio.create_task(servers.prepare("a/x.png [output]", "b"))
    await servers["b"].uploading.wait()
    first.cancel()
    servers["b"].gate.set()
    assert await second == "comfyproxy/a/output/x.png"


async def test_a_target_that_fails_is_reported_as_not_delivered(servers: Servers) -> None:
    servers["a"].put("x.png", b"picture", type="output")
    servers["b"].is_away = True
    with pytest.raises(NotDelivered, match="b"):
        await servers.prepare("a/x.png [output]", "b")
    assert not servers.backend("b").health.healthy


async def test_a_source_that_dies_in_mid_copy_is_blamed_and_not_the_target(servers: Servers) -> None:
    servers["a"].put("x.png", b"a long picture", type="output")
    servers["a"].break_after = 8
    assert await servers.prepare("a/x.png [output]", "b") == "a/x.png [output]"
    assert servers.backend("b").last_error is None
    assert servers["b"].files == {}


async def test_a_target_that_refuses_the_copy_leaves_the_name_alone(servers: Servers) -> None:
    servers["a"].put("x.png", b"picture", type="output")
    servers["b"].refuse_with = 413
    assert await servers.prepare("a/x.png [output]", "b") == "a/x.png [output]"


async def test_a_copy_that_meets_a_strangers_file_is_used_under_its_other_name(servers: Servers) -> None:
    servers["a"].put("x.png", b"ours")
    # The target answers HEAD with 404 and gets a file of that name before the copy arrives.
    servers["b"].gate = asyncio.Event()
    preparing = asyncio.create_task(servers.prepare("x.png", "b"))
    await servers["b"].uploading.wait()
    servers["b"].put("x.png", b"a stranger's")
    servers["b"].gate.set()
    assert await preparing == "x (1).png"
    assert await servers.prepare("x.png", "b") == "x.png"  # it is there now, as it would be without a proxy


async def test_a_drained_backend_still_gives_its_files(servers: Servers) -> None:
    servers["a"].put("x.png", b"picture", type="output")
    servers.backend("a").is_drained = True
    assert await servers.prepare("a/x.png [output]", "b") == "comfyproxy/a/output/x.png"


async def test_with_one_backend_nothing_is_looked_at(tmp_path: Path) -> None:
    servers = Servers(tmp_path, "a")
    assert await servers.files.prepare("p", b"not even a graph", servers.backend("a"), IMAGE_INPUTS) is None


async def test_with_shared_outputs_a_subfolder_is_no_prefix(tmp_path: Path) -> None:
    servers = Servers(tmp_path, "a", "b", prefixes=False)
    servers["b"].put("x.png", b"picture", subfolder="a", type="output")
    assert await servers.prepare("a/x.png [output]", "b") == "a/x.png [output]"


async def test_a_file_is_located_on_ready_backends_only(servers: Servers) -> None:
    ref = servers["a"].put("x.png", b"1")
    servers["c"].put("x.png", b"2")
    assert await servers.files.locate(ref) is servers.backend("a")
    servers.backend("a").health = Health(healthy=False)
    assert await servers.files.locate(ref) is servers.backend("c")
    assert await servers.files.locate(ref, skip=servers.backend("c")) is None
