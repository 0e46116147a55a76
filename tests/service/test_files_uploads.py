"""An upload is everywhere under one name, and nobody's file is overwritten."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from files_support import Answer, Servers, stream

from comfyproxy.core.errors import BackendUnavailable, NoBackend
from comfyproxy.core.files import FileRef
from comfyproxy.core.health import Health
from comfyproxy.core.ports import StoreUnavailable
from comfyproxy.service.file_ports import UploadAnswer
from comfyproxy.service.uploads import Upload, unique_name

UP = FileRef("up.png", "", "input")


@pytest.fixture
async def servers(tmp_path: Path) -> AsyncIterator[Servers]:
    servers = Servers(tmp_path, "a", "b", "c")
    await servers.files.open()
    yield servers
    await servers.files.close()
    assert list((tmp_path / "spool").iterdir()) == []


async def upload(
    servers: Servers,
    data: bytes,
    *,
    name: str = "up.png",
    overwrite: str | None = None,
    subfolder: str | None = None,
    original_ref: str | None = None,
) -> UploadAnswer:
    file = await servers.files.receive(stream(data))
    form = Upload(file=file, name=name, content_type="image/png", overwrite=overwrite, subfolder=subfolder)
    try:
        if original_ref is not None:
            return (await servers.files.upload_mask(form, original_ref))[1]
        return (await servers.files.upload(form))[1]
    finally:
        file.release()


async def test_an_upload_is_on_every_ready_backend_under_the_same_name(servers: Servers) -> None:
    answer = await upload(servers, b"picture", subfolder="deep/er")
    ref = FileRef("up.png", "deep/er", "input")
    assert answer.ref == ref
    assert [client.files for client in servers.clients.values()] == [{ref: b"picture"}] * 3


async def test_the_same_name_with_other_bytes_gets_the_name_that_comfyui_gives_everywhere(servers: Servers) -> None:
    await upload(servers, b"one")
    assert (await upload(servers, b"one")).ref == UP
    answer = await upload(servers, b"two")
    assert answer.ref == FileRef("up (1).png", "", "input")
    for client in servers.clients.values():
        assert client.files == {UP: b"one", FileRef("up (1).png", "", "input"): b"two"}


async def test_an_overwriting_upload_replaces_the_file_everywhere(servers: Servers) -> None:
    await upload(servers, b"one")
    assert (await upload(servers, b"two", overwrite="true")).ref == UP
    assert [client.files for client in servers.clients.values()] == [{UP: b"two"}] * 3


async def test_a_strangers_file_on_one_backend_is_not_overwritten_and_all_agree_on_a_unique_name(
    servers: Servers,
) -> None:
    servers["b"].put("up.png", b"a stranger's")
    answer = await upload(servers, b"ours")
    assert answer.ref is not None
    assert answer.ref.name.startswith("up_")
    assert json.loads(answer.body)["name"] == answer.ref.name
    assert [client.files[answer.ref] for client in servers.clients.values()] == [b"ours"] * 3
    assert servers["b"].files[UP] == b"a stranger's"
    assert (await upload(servers, b"ours")).ref == answer.ref


async def test_a_backend_that_is_away_gets_the_upload_before_a_job_needs_it(servers: Servers) -> None:
    servers.goes_away("c")
    await upload(servers, b"picture")
    assert servers["c"].files == {}
    servers.comes_back("c")
    assert await servers.prepare("up.png", "c") == "up.png"
    assert servers["c"].files == {UP: b"picture"}


async def test_a_backend_that_fails_during_the_upload_is_left_out_and_noted(servers: Servers) -> None:
    servers["b"].is_away = True
    assert (await upload(servers, b"picture")).status == 200
    assert not servers.backend("b").health.healthy
    assert servers["c"].files == {UP: b"picture"}


async def test_a_known_upload_reaches_a_job_through_any_input(servers: Servers) -> None:
    servers.goes_away("c")
    await upload(servers, b"picture", name="mesh.glb")
    servers.comes_back("c")
    assert await servers.prepare("mesh.glb", "c", class_type="CustomLoader") == "mesh.glb"
    assert servers["c"].files == {FileRef("mesh.glb", "", "input"): b"picture"}


async def test_a_backend_that_missed_an_overwrite_gets_the_new_content(servers: Servers) -> None:
    await upload(servers, b"one")
    servers.goes_away("c")
    await upload(servers, b"second", overwrite="1")
    servers.comes_back("c")
    await servers.prepare("up.png", "c")
    assert servers["c"].files == {UP: b"second"}


async def test_a_backend_that_missed_the_upload_and_has_a_strangers_file_gets_it_under_another_name(
    servers: Servers,
) -> None:
    servers["c"].put("up.png", b"a stranger's")
    servers.goes_away("c")
    await upload(servers, b"ours")
    servers.comes_back("c")
    assert await servers.prepare("up.png", "c") == "up (1).png"
    assert servers["c"].files[UP] == b"a stranger's"


async def test_an_upload_to_a_backend_that_lost_its_input_folder_is_brought_again(servers: Servers) -> None:
    await upload(servers, b"picture")
    servers.goes_away("b")
    servers["b"].files.clear()
    servers.comes_back("b")
    await servers.prepare("up.png", "b")
    assert servers["b"].files == {UP: b"picture"}


async def test_a_new_home_that_lacks_a_known_file_does_not_give_its_name_away(servers: Servers) -> None:
    servers.goes_away("b")
    servers.goes_away("c")
    await upload(servers, b"one")
    servers.comes_back("b")
    servers.goes_away("a")
    answer = await upload(servers, b"two")
    assert answer.ref is not None
    assert answer.ref.name.startswith("up_")
    servers.comes_back("a")
    assert await servers.prepare("up.png", "a") == "up.png"
    assert servers["a"].files[UP] == b"one"


async def test_what_home_refuses_the_client_reads_and_nobody_else_is_asked(servers: Servers) -> None:
    servers["a"].refuse_with = 413
    answer = await upload(servers, b"too much")
    assert (answer.status, answer.body) == (413, b"no")
    assert servers["b"].calls == []


async def test_a_home_that_turns_out_dead_is_replaced_by_the_next(servers: Servers) -> None:
    assert servers.fleet.home() is servers.backend("a")
    servers["a"].is_away = True
    assert (await upload(servers, b"picture")).ref == UP
    assert servers["b"].files == {UP: b"picture"}


async def test_an_upload_to_nobody_says_so(servers: Servers) -> None:
    for client in servers.clients.values():
        client.is_away = True
    with pytest.raises((NoBackend, BackendUnavailable)):
        await upload(servers, b"picture")
    for backend in servers.fleet:
        backend.health = Health(healthy=True)


async def test_a_slow_backend_does_not_keep_the_client_waiting(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers["c"].gate = asyncio.Event()
    servers.files._distributor._wait_s = 0
    await upload(servers, b"picture")
    job = asyncio.create_task(servers.prepare("up.png", "c"))
    await servers["c"].uploading.wait()
    servers["c"].gate.set()
    assert await job == "up.png"
    assert servers["c"].files == {UP: b"picture"}
    assert servers["c"].count("upload") == 1


async def test_a_mask_on_an_output_of_one_backend_is_made_on_all(servers: Servers) -> None:
    servers["b"].put("x.png", b"original", subfolder="sub", type="output")
    original = json.dumps({"filename": "x.png", "subfolder": "b/sub", "type": "output"})
    answer = await upload(servers, b"mask", name="m.png", original_ref=original)
    ref = FileRef("m.png", "", "input")
    assert answer.ref == ref
    assert [client.files[ref] for client in servers.clients.values()] == [b"original+mask"] * 3


async def test_a_mask_on_an_annotated_output_is_understood(servers: Servers) -> None:
    servers["b"].put("x.png", b"original", type="output")
    original = json.dumps({"filename": "b/x.png [output]"})
    await upload(servers, b"mask", name="m.png", original_ref=original)
    assert servers["a"].files[FileRef("m.png", "", "input")] == b"original+mask"


async def test_a_backend_that_missed_a_mask_gets_the_finished_picture(servers: Servers) -> None:
    await upload(servers, b"original")
    servers.goes_away("c")
    original = json.dumps({"filename": "up.png", "subfolder": "", "type": "input"})
    await upload(servers, b"mask", name="m.png", original_ref=original)
    servers.comes_back("c")
    assert await servers.prepare("m.png", "c") == "m.png"
    assert servers["c"].files[FileRef("m.png", "", "input")] == b"original+mask"


async def test_a_full_disk_is_said_to_be_one(servers: Servers, tmp_path: Path) -> None:
    (tmp_path / "spool").rmdir()
    with pytest.raises(StoreUnavailable):
        await servers.files.receive(stream(b"data"))
    (tmp_path / "spool").mkdir()


async def test_what_a_killed_process_left_in_the_spool_is_removed(servers: Servers, tmp_path: Path) -> None:
    (tmp_path / "spool" / "old.upload").write_bytes(b"x")
    await servers.files.open()


def test_a_unique_name_is_the_same_for_the_same_content() -> None:
    assert unique_name("up.png", "1a2b3c4d5e") == "up_1a2b3c4d.png"
    assert unique_name("noext", "1a2b3c4d5e") == "noext_1a2b3c4d"


def test_the_fakes_answer_is_an_upload_answer() -> None:
    answer: UploadAnswer = Answer(200)
    assert answer.ref is None
