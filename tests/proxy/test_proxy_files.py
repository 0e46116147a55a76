"""Files over the fleet: what a client uploads or a backend makes is the right thing wherever a prompt lands."""

import asyncio
import hashlib
import json
import random
from collections.abc import Iterator
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from load_support import ceaseless, color_of, interrupted, running, view_of
from PIL import Image
from proxying import Fleet, Proxy, running_proxy
from simulator_support import Client, png, text, upload

from comfyproxy.service.uploads import Distributor
from comfyproxy.settings import HealthCheck, OutputSettings
from comfyproxy.simulator import SimulatedBackend

# aiohttp's reader of forms calls its own deprecated method where a read ends shortly behind a boundary (3.14,
# `multipart.py`, `_read_chunk_from_stream`), and says so only then.
pytestmark = pytest.mark.filterwarnings("ignore:unread_data:DeprecationWarning")

# Notices within moments that a backend is back, and takes none for dead that is only slow.
WATCHFUL = HealthCheck(interval=0.2, timeout=5.0, heartbeat_timeout=60.0, rise=1, fall=3)

# Node classes that only one backend has, and that do nothing: with one of them in its graph a prompt lands there.
MARKS = {"a": "ImageInvert", "b": "ImageScale", "c": "VAEDecode"}

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
COLORS = {RED: 0xFF0000, GREEN: 0x00FF00, BLUE: 0x0000FF}


class MarkedFleet(Fleet):
    """Backends to which a prompt can be sent by name."""

    def __init__(self, *names: str, **options: Any) -> None:
        super().__init__()
        for name in names:
            lacks = tuple(MARKS[other] for other in names if other != name)
            self.backends[name] = SimulatedBackend(name=name, speed=20.0, without_nodes=lacks, **options)


def on(backend: str, graph: dict[str, Any]) -> dict[str, Any]:
    """Let a prompt land on a backend of a MarkedFleet."""
    return graph | {"mark": {"class_type": MARKS[backend], "inputs": {}}}


def loading(name: str, prefix: str = "loaded") -> dict[str, Any]:
    """Load a picture and save it."""
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": name}},
        "2": {"class_type": "SaveImage", "inputs": {"filename_prefix": prefix, "images": ["1", 0]}},
    }


def saving(color: int, prefix: str = "ComfyUI") -> dict[str, Any]:
    """Save a picture of one colour."""
    return {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": color}},
        "2": {"class_type": "SaveImage", "inputs": {"filename_prefix": prefix, "images": ["1", 0]}},
    }


async def saved(proxy: Proxy, graph: dict[str, Any]) -> dict[str, str]:
    """Run a prompt, and return the file that its history entry names."""
    entry = await proxy.ended(await proxy.submit(graph, "me"))
    assert entry["status"]["status_str"] == "success", entry["status"]
    (file,) = entry["outputs"]["2"]["images"]
    assert isinstance(file, dict)
    return file


async def uploaded(proxy: Client, name: str, data: bytes, **fields: str) -> str:
    """Upload a picture that must be taken; return the name that it was given."""
    status, answer = await proxy.call("POST", "/upload/image", data=upload(name, data, **fields))
    assert status == 200, answer
    return str(answer["name"])


def input_of(backend: SimulatedBackend, name: str) -> bytes:
    return (backend.folders.input / name).read_bytes()


async def went_away(proxy: Proxy, name: str, backend: SimulatedBackend) -> None:
    await backend.kill()
    await proxy.state_is(name, "unhealthy")


async def came_back(proxy: Proxy, name: str, backend: SimulatedBackend) -> None:
    await backend.restart()
    await proxy.ready(name)


# Uploads


async def test_an_upload_lands_on_every_backend_and_a_prompt_that_names_it_runs_on_each(tmp_path: Path) -> None:
    async with MarkedFleet("a", "b", "c") as fleet, running_proxy(fleet, tmp_path) as proxy:
        assert await uploaded(proxy, "x.png", png(color=RED)) == "x.png"
        assert [input_of(backend, "x.png") for backend in fleet.backends.values()] == [png(color=RED)] * 3
        for name in fleet.backends:
            file = await saved(proxy, on(name, loading("x.png")))
            assert file["subfolder"] == name
            assert color_of(await proxy.get(view_of(file))) == COLORS[RED]
        assert {name: len(ran) for name, ran in fleet.executed.items()} == {"a": 1, "b": 1, "c": 1}


@pytest.mark.parametrize("owner", ["a", "b", "c"])
async def test_where_one_backend_has_another_file_of_that_name_all_agree_on_a_new_one(
    tmp_path: Path, owner: str
) -> None:
    async with MarkedFleet("a", "b", "c") as fleet, running_proxy(fleet, tmp_path) as proxy:
        (fleet[owner].folders.input / "x.png").write_bytes(png(color=BLUE))
        name = await uploaded(proxy, "x.png", png(color=RED))
        assert name != "x.png"
        assert [input_of(backend, name) for backend in fleet.backends.values()] == [png(color=RED)] * 3
        assert input_of(fleet[owner], "x.png") == png(color=BLUE)
        for backend in fleet.backends:
            file = await saved(proxy, on(backend, loading(name)))
            assert color_of(await proxy.get(view_of(file))) == COLORS[RED]


async def test_an_upload_that_overwrites_does_so_everywhere(tmp_path: Path) -> None:
    async with MarkedFleet("a", "b") as fleet, running_proxy(fleet, tmp_path) as proxy:
        await uploaded(proxy, "x.png", png(color=RED))
        assert await uploaded(proxy, "x.png", png(color=GREEN), overwrite="true") == "x.png"
        for backend in fleet.backends:
            file = await saved(proxy, on(backend, loading("x.png")))
            assert color_of(await proxy.get(view_of(file))) == COLORS[GREEN]


async def test_an_upload_into_a_subfolder_is_loaded_from_there(tmp_path: Path) -> None:
    async with MarkedFleet("a", "b") as fleet, running_proxy(fleet, tmp_path) as proxy:
        await uploaded(proxy, "x.png", png(color=RED), subfolder="mine/too")
        for backend in fleet.backends:
            file = await saved(proxy, on(backend, loading("mine/too/x.png")))
            assert color_of(await proxy.get(view_of(file))) == COLORS[RED]


async def test_a_backend_that_was_away_during_the_upload_gets_the_file_before_a_prompt_needs_it(tmp_path: Path) -> None:
    async with MarkedFleet("a", "b") as fleet, running_proxy(fleet, tmp_path, health_check=WATCHFUL) as proxy:
        await went_away(proxy, "b", fleet["b"])
        await uploaded(proxy, "x.png", png(color=RED))
        await came_back(proxy, "b", fleet["b"])
        assert not (fleet["b"].folders.input / "x.png").exists()
        file = await saved(proxy, on("b", loading("x.png")))
        assert file["subfolder"] == "b"
        assert color_of(await proxy.get(view_of(file))) == COLORS[RED]
        assert input_of(fleet["b"], "x.png") == png(color=RED)


async def test_a_backend_that_was_away_while_a_file_was_overwritten_gets_the_new_one(tmp_path: Path) -> None:
    async with MarkedFleet("a", "b") as fleet, running_proxy(fleet, tmp_path, health_check=WATCHFUL) as proxy:
        await uploaded(proxy, "x.png", png(color=RED))
        await went_away(proxy, "b", fleet["b"])
        await uploaded(proxy, "x.png", png(color=GREEN), overwrite="true")
        await came_back(proxy, "b", fleet["b"])
        assert input_of(fleet["b"], "x.png") == png(color=RED)
        file = await saved(proxy, on("b", loading("x.png")))
        assert color_of(await proxy.get(view_of(file))) == COLORS[GREEN]


async def test_a_backend_that_joins_late_gets_the_files_that_its_prompts_name(tmp_path: Path) -> None:
    async with MarkedFleet("a", "b") as fleet:
        await fleet["b"].kill()
        async with running_proxy(fleet, tmp_path, health_check=WATCHFUL, wait_ready=False) as proxy:
            await proxy.ready("a")
            assert (await proxy.states())["b"] != "ready"
            await uploaded(proxy, "x.png", png(color=RED))
            await came_back(proxy, "b", fleet["b"])
            file = await saved(proxy, on("b", loading("x.png")))
            assert (file["subfolder"], color_of(await proxy.get(view_of(file)))) == ("b", COLORS[RED])


async def test_a_backend_that_comes_back_with_empty_folders_gets_the_file_again(tmp_path: Path) -> None:
    async with MarkedFleet("a", "b") as fleet, running_proxy(fleet, tmp_path, health_check=WATCHFUL) as proxy:
        await uploaded(proxy, "x.png", png(color=RED))
        await saved(proxy, on("b", loading("x.png")))
        lost = fleet["b"].folders.input / "x.png"
        await went_away(proxy, "b", fleet["b"])
        lost.unlink()
        await came_back(proxy, "b", fleet["b"])
        file = await saved(proxy, on("b", loading("x.png", "again")))
        assert color_of(await proxy.get(view_of(file))) == COLORS[RED]
        assert lost.read_bytes() == png(color=RED)


async def test_a_file_is_still_known_after_a_restart_of_the_proxy(tmp_path: Path) -> None:
    async with MarkedFleet("a", "b") as fleet:
        async with running_proxy(fleet, tmp_path, health_check=WATCHFUL) as proxy:
            await went_away(proxy, "b", fleet["b"])
            await uploaded(proxy, "x.png", png(color=RED))
        await fleet["b"].restart()
        async with running_proxy(fleet, tmp_path) as proxy:
            file = await saved(proxy, on("b", loading("x.png")))
            assert color_of(await proxy.get(view_of(file))) == COLORS[RED]


async def test_a_file_that_is_nowhere_gets_comfyuis_own_error(tmp_path: Path) -> None:
    async with MarkedFleet("a", "b") as fleet, running_proxy(fleet, tmp_path) as proxy:
        status, body = await proxy.post("/prompt", {"prompt": loading("nowhere.png")})
        assert status == 400
        assert body["node_errors"]["1"]["errors"][0]["details"] == "image - Invalid image file: nowhere.png"


async def test_many_who_upload_different_files_of_one_name_at_once_each_get_their_own(tmp_path: Path) -> None:
    colors = [(number * 20, 0, 0) for number in range(8)]
    async with MarkedFleet("a", "b", "c") as fleet, running_proxy(fleet, tmp_path) as proxy:
        names = await asyncio.gather(*(uploaded(proxy, "x.png", png(color=color)) for color in colors))
        assert len(set(names)) == len(colors)
        for backend in fleet.backends.values():
            assert [input_of(backend, name) for name in names] == [png(color=color) for color in colors]


async def test_many_who_upload_the_same_file_at_once_share_it(tmp_path: Path) -> None:
    async with MarkedFleet("a", "b", "c") as fleet, running_proxy(fleet, tmp_path) as proxy:
        names = await asyncio.gather(*(uploaded(proxy, "x.png", png(color=RED)) for _ in range(8)))
        assert set(names) == {"x.png"}
        for backend in fleet.backends.values():
            assert [path.name for path in backend.folders.input.iterdir()] == ["x.png"]


async def test_of_many_who_overwrite_one_file_at_once_the_same_one_wins_everywhere(tmp_path: Path) -> None:
    async with MarkedFleet("a", "b", "c") as fleet, running_proxy(fleet, tmp_path) as proxy:
        forms = [png(color=(number * 20, 0, 0)) for number in range(8)]
        names = await asyncio.gather(*(uploaded(proxy, "x.png", data, overwrite="true") for data in forms))
        assert set(names) == {"x.png"}
        assert len({input_of(backend, "x.png") for backend in fleet.backends.values()}) == 1


async def test_an_upload_that_reaches_a_slow_backend_late_does_not_replace_a_newer_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comfyproxy.service.files.Distributor", partial(Distributor, wait_s=0.01))
    async with MarkedFleet("a", "b") as fleet, running_proxy(fleet, tmp_path) as proxy:
        fleet["b"].faults.delay_s = 0.3
        await uploaded(proxy, "x.png", png(color=RED), overwrite="true")
        while ("POST", "/upload/image") not in fleet["b"].requests:
            await asyncio.sleep(0)
        fleet["b"].faults.delay_s = 0.0
        await uploaded(proxy, "x.png", png(color=GREEN), overwrite="true")
        seen: list[bytes] = []
        async with asyncio.timeout(10):
            while len(seen) < 2:
                await asyncio.sleep(0)
                if (fleet["b"].folders.input / "x.png").exists() and [input_of(fleet["b"], "x.png")] != seen:
                    seen.append(input_of(fleet["b"], "x.png"))
        assert seen == [png(color=RED), png(color=GREEN)]
        file = await saved(proxy, on("b", loading("x.png")))
        assert color_of(await proxy.get(view_of(file))) == COLORS[GREEN]


# Outputs as inputs


async def test_an_output_of_one_backend_is_an_input_on_another(tmp_path: Path) -> None:
    async with MarkedFleet("a", "b") as fleet, running_proxy(fleet, tmp_path) as proxy:
        made = {name: await saved(proxy, on(name, saving(COLORS[c]))) for name, c in (("a", RED), ("b", BLUE))}
        assert made["a"]["filename"] == made["b"]["filename"]
        for lands_on in ("a", "b"):
            for name, color in (("a", RED), ("b", BLUE)):
                graph = loading(f"{name}/{made[name]['filename']} [output]", f"on {lands_on} from {name}")
                prompt_id = await proxy.submit(on(lands_on, graph), "me")
                entry = await proxy.ended(prompt_id)
                (file,) = entry["outputs"]["2"]["images"]
                assert (file["subfolder"], color_of(await proxy.get(view_of(file)))) == (lands_on, COLORS[color])
                assert entry["prompt"][2] == on(lands_on, graph)  # history shows the client's own


async def test_an_output_in_a_subfolder_and_a_temporary_one_are_inputs_on_another_backend(tmp_path: Path) -> None:
    async with MarkedFleet("a", "b") as fleet, running_proxy(fleet, tmp_path) as proxy:
        made = await saved(proxy, on("a", saving(COLORS[GREEN], "sub/folder/x")))
        assert made["subfolder"] == "a/sub/folder"
        shown = saving(COLORS[BLUE])
        shown["2"] = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
        temporary = await saved(proxy, on("a", shown))
        assert (temporary["subfolder"], temporary["type"]) == ("a", "temp")
        for source, color in ((made, GREEN), (temporary, BLUE)):
            name = f"{source['subfolder']}/{source['filename']} [{source['type']}]"
            file = await saved(proxy, on("b", loading(name, "copied")))
            assert (file["subfolder"], color_of(await proxy.get(view_of(file)))) == ("b", COLORS[color])


async def test_an_output_made_anew_under_its_old_name_is_copied_anew(tmp_path: Path) -> None:
    async with MarkedFleet("a", "b") as fleet, running_proxy(fleet, tmp_path) as proxy:
        for color in (RED, BLUE):
            # Of equal size: what lies behind a PNG's end does not count.
            (fleet["a"].folders.output / "made.png").write_bytes(png(color=color).ljust(100))
            file = await saved(proxy, on("b", loading("a/made.png [output]")))
            assert color_of(await proxy.get(view_of(file))) == COLORS[color]


@pytest.mark.parametrize("freed", ["a", "b"])
async def test_a_prompt_that_waited_finds_its_files_wherever_it_runs_in_the_end(tmp_path: Path, freed: str) -> None:
    async with MarkedFleet("a", "b") as fleet, running_proxy(fleet, tmp_path, max_concurrent=1) as proxy:
        made = await saved(proxy, on("a", saving(COLORS[GREEN])))
        blocking = {name: await proxy.submit(on(name, ceaseless()), name) for name in fleet.backends}
        await running(proxy, *blocking.values())
        waiting = await proxy.submit(loading(f"a/{made['filename']} [output]"), "me")
        await interrupted(proxy, blocking[freed])
        (file,) = (await proxy.ended(waiting))["outputs"]["2"]["images"]
        assert (file["subfolder"], color_of(await proxy.get(view_of(file)))) == (freed, COLORS[GREEN])


async def test_a_mask_is_laid_over_the_output_of_another_backend(tmp_path: Path) -> None:
    async with MarkedFleet("a", "b", "c") as fleet, running_proxy(fleet, tmp_path) as proxy:
        made = await saved(proxy, on("b", saving(COLORS[GREEN])))
        form = upload("mask.png", png(color=(1, 2, 3, 77)), original_ref=json.dumps(made))
        status, answer = await proxy.call("POST", "/upload/mask", data=form)
        assert (status, answer["type"]) == (200, "input")
        for name, backend in fleet.backends.items():
            with Image.open(BytesIO(input_of(backend, answer["name"]))) as picture:
                assert picture.getpixel((0, 0)) == (*GREEN, 77)
            file = await saved(proxy, on(name, loading(answer["name"])))
            assert color_of(await proxy.get(view_of(file))) == COLORS[GREEN]


async def test_a_backend_that_was_away_when_a_mask_was_made_gets_the_finished_picture(tmp_path: Path) -> None:
    async with MarkedFleet("a", "b") as fleet, running_proxy(fleet, tmp_path, health_check=WATCHFUL) as proxy:
        await uploaded(proxy, "x.png", png(color=BLUE))
        await went_away(proxy, "b", fleet["b"])
        original = json.dumps({"filename": "x.png", "type": "input"})
        form = upload("mask.png", png(color=(1, 2, 3, 77)), original_ref=original)
        _, answer = await proxy.call("POST", "/upload/mask", data=form)
        await came_back(proxy, "b", fleet["b"])
        file = await saved(proxy, on("b", loading(answer["name"])))
        assert color_of(await proxy.get(view_of(file))) == COLORS[BLUE]
        assert input_of(fleet["b"], answer["name"]) == input_of(fleet["a"], answer["name"])


# What is seen of files


async def test_files_of_one_name_are_each_shown_from_the_backend_that_made_them(tmp_path: Path) -> None:
    async with MarkedFleet("a", "b") as fleet, running_proxy(fleet, tmp_path) as proxy:
        made = {name: await saved(proxy, on(name, saving(COLORS[c], "sub/x"))) for name, c in (("a", RED), ("b", BLUE))}
        assert made["a"]["filename"] == made["b"]["filename"]
        seen = {}
        for name, file in made.items():
            assert file["subfolder"] == f"{name}/sub"
            async with Client(fleet[name]) as direct:
                own = await direct.get(view_of({**file, "subfolder": "sub"}))
            seen[name] = await proxy.get(view_of(file))
            assert seen[name] == own
            assert await proxy.get("/api" + view_of(file)) == own
        assert seen["a"] != seen["b"]


async def test_a_part_of_a_file_and_its_head_are_the_makers(tmp_path: Path) -> None:
    async with MarkedFleet("a", "b") as fleet, running_proxy(fleet, tmp_path) as proxy:
        files = [await saved(proxy, on(name, saving(COLORS[c]))) for name, c in (("a", RED), ("b", BLUE))]
        for file in files:
            whole = await proxy.get(view_of(file))
            assert await proxy.call("GET", view_of(file), headers={"Range": "bytes=10-29"}) == (206, whole[10:30])
            assert await proxy.call("GET", view_of(file), headers={"Range": "bytes=-7"}) == (206, whole[-7:])
            assert (await proxy.call("GET", view_of(file), headers={"Range": "bytes=99999-"}))[0] == 416
            async with proxy.session.head(proxy.url + view_of(file)) as head:
                assert (head.status, head.headers["Content-Length"]) == (200, str(len(whole)))
                assert head.headers["Content-Type"] == "image/png"
                assert await head.read() == b""
                known = {"If-None-Match": head.headers["ETag"]}
            assert await proxy.call("GET", view_of(file), headers=known) == (304, b"")
            status, smaller = await proxy.call("GET", view_of(file) + "&preview=webp;90")
            assert (status, smaller[8:12]) == (200, b"WEBP")


@pytest.mark.parametrize(
    ("names", "settings", "subfolders"),
    [
        (("a", "b"), {}, ["a", "a/sub", "a"]),
        (("a",), {}, ["", "sub", ""]),
        (("a", "b"), {"outputs": OutputSettings(shared=True)}, ["", "sub", ""]),
    ],
    ids=["two backends", "one backend", "shared outputs"],
)
async def test_a_backends_name_stands_before_its_outputs_where_there_is_a_choice(
    tmp_path: Path, names: tuple[str, ...], settings: dict[str, Any], subfolders: list[str]
) -> None:
    graph = saving(COLORS[RED]) | {
        "3": {"class_type": "SaveImage", "inputs": {"filename_prefix": "sub/x", "images": ["1", 0]}},
        "4": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }
    async with MarkedFleet(*names) as fleet, running_proxy(fleet, tmp_path, **settings) as proxy:
        socket = await proxy.socket("me")
        prompt_id = await proxy.submit(on("a", graph), "me")
        await socket.until_done(prompt_id)
        outputs = (await proxy.get(f"/history/{prompt_id}"))[prompt_id]["outputs"]
        assert [outputs[node]["images"][0]["subfolder"] for node in ("2", "3", "4")] == subfolders
        assert {data["node"]: data["output"] for data in socket.data("executed")} == outputs
        job = await proxy.get(f"/api/jobs/{prompt_id}")
        assert job["outputs"] == outputs
        for node in ("2", "3", "4"):
            assert color_of(await proxy.get(view_of(outputs[node]["images"][0]))) == COLORS[RED]


async def test_with_shared_outputs_every_backend_shows_and_loads_what_another_made(tmp_path: Path) -> None:
    shared = OutputSettings(shared=True)
    async with (
        MarkedFleet("a", "b", base_dir=tmp_path / "storage") as fleet,
        running_proxy(fleet, tmp_path / "proxy", outputs=shared) as proxy,
    ):
        made = [await saved(proxy, on(name, saving(COLORS[c]))) for name, c in (("a", RED), ("b", BLUE))]
        assert [file["filename"] for file in made] == ["ComfyUI_00001_.png", "ComfyUI_00002_.png"]
        assert [color_of(await proxy.get(view_of(file))) for file in made] == [COLORS[RED], COLORS[BLUE]]
        file = await saved(proxy, on("b", loading("ComfyUI_00001_.png [output]")))
        assert color_of(await proxy.get(view_of(file))) == COLORS[RED]


# Large files


def large(mebibytes: int) -> Iterator[bytes]:
    """A file's content in pieces of one MiB, no two of which are alike."""
    noise = random.Random(1).randbytes(1024 * 1024 - 4)
    return (number.to_bytes(4, "big") + noise for number in range(mebibytes))


async def test_a_large_file_goes_up_to_all_backends_and_comes_down_whole(tmp_path: Path) -> None:
    source = tmp_path / "large.png"
    with source.open("wb") as file:
        file.writelines(large(64))
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    patient = aiohttp.ClientTimeout(total=120)
    async with MarkedFleet("a", "b") as fleet, running_proxy(fleet, tmp_path / "proxy") as proxy:
        with source.open("rb") as body:
            form = aiohttp.FormData({"image": body})
            status, answer = await proxy.call("POST", "/upload/image", data=form, timeout=patient)
        assert (status, answer["name"]) == (200, "large.png")
        for backend in fleet.backends.values():
            assert hashlib.sha256(input_of(backend, "large.png")).hexdigest() == digest
        (fleet["b"].folders.input / "large.png").rename(fleet["b"].folders.output / "made.png")
        for query in ("filename=large.png&type=input", "filename=made.png&subfolder=b&type=output"):
            async with proxy.session.get(f"{proxy.url}/view?{query}", timeout=patient) as answer:
                assert answer.status == 200
                received = hashlib.sha256()
                async for chunk in answer.content.iter_any():
                    received.update(chunk)
            assert received.hexdigest() == digest


async def test_a_large_file_that_a_backend_lacks_is_copied_whole(tmp_path: Path) -> None:
    # As large as a picture gets that is still quick to load: noise does not shrink.
    noise = Image.frombytes("RGB", (2048, 2048), random.Random(2).randbytes(2048 * 2048 * 3))
    buffer = BytesIO()
    noise.save(buffer, "PNG", compress_level=0)
    async with MarkedFleet("a", "b") as fleet, running_proxy(fleet, tmp_path, health_check=WATCHFUL) as proxy:
        (fleet["a"].folders.output / "noise.png").write_bytes(buffer.getvalue())
        file = await saved(proxy, on("b", loading("a/noise.png [output]")))
        with Image.open(BytesIO(await proxy.get(view_of(file)))) as picture:
            assert (file["subfolder"], picture.tobytes()) == ("b", noise.tobytes())


# What belongs to the home backend, and to nobody else's page


async def test_a_workflow_is_saved_and_found_again_under_its_encoded_name(tmp_path: Path) -> None:
    path = "/userdata/workflows%2Fmine%20%C3%BC.json"
    async with MarkedFleet("a", "b") as fleet, running_proxy(fleet, tmp_path) as proxy:
        for prefix in ("", "/api"):
            assert (await proxy.call("POST", f"{prefix}{path}", data=b'{"from": "%s"}' % prefix.encode()))[0] == 200
            assert await proxy.get(f"{prefix}{path}") == {"from": prefix}
            assert ("GET", f"{prefix}{path}") in fleet["a"].requests
        assert await proxy.get("/userdata?dir=workflows") == ["mine ü.json"]
        async with Client(fleet["a"]) as direct:
            assert await direct.get(path) == {"from": "/api"}
        assert await proxy.call("DELETE", path) == (204, b"")
        assert (await proxy.call("GET", path))[0] == 404
        assert not [path for method, path in fleet["b"].requests if method == "GET" and "userdata" in path]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/view?filename=x.png"),
        ("POST", "/upload/image"),
        ("POST", "/prompt"),
        ("GET", "/api/queue"),
        ("GET", "/history"),
        ("POST", "/interrupt"),
        ("GET", "/ws"),
        ("POST", "/userdata/workflows%2Fa.json"),
        ("GET", "/status"),
        ("GET", "/metrics"),
        ("GET", "/healthz"),
        ("GET", "/readyz"),
        ("GET", "/comfyproxy/v1/anything"),
    ],
)
async def test_another_origins_page_is_refused_on_every_path(tmp_path: Path, method: str, path: str) -> None:
    async with Fleet("a", "b") as fleet, running_proxy(fleet, tmp_path) as proxy:
        for headers in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
            assert await proxy.call(method, path, headers=headers) == (403, b"")
        asked = {request for backend in fleet.backends.values() for request in backend.requests} - {("GET", "/ws")}
        assert (method, path.partition("?")[0]) not in asked


async def test_the_proxys_own_page_is_not_foreign_and_no_backend_takes_it_for_one(tmp_path: Path) -> None:
    async with MarkedFleet("a", "b") as fleet, running_proxy(fleet, tmp_path) as proxy:
        own = {"Origin": proxy.url, "Sec-Fetch-Site": "same-origin"}
        status, answer = await proxy.call("POST", "/upload/image", data=upload("x.png", png()), headers=own)
        assert (status, answer["name"]) == (200, "x.png")
        status, _ = await proxy.post("/prompt", {"prompt": on("b", text())}, headers=own)
        assert status == 200
        assert (await proxy.call("GET", "/settings", headers=own))[0] == 200
