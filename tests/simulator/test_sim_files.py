"""Files: view, upload, and what lies where."""

from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from simulator_support import Client, png, text, upload

from comfyproxy.simulator import SimulatedBackend
from comfyproxy.simulator.folders import Folders
from comfyproxy.simulator.pictures import tensor_text
from comfyproxy.simulator.profile import profile_of


def folders_in(path: Path) -> Folders:
    folders = Folders(path, profile_of("0.25.0"))
    folders.prepare(())
    return folders


async def test_a_picture_is_viewed_whole_in_part_and_not_again_if_unchanged() -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        data = png()
        (backend.folders.output / "x.png").write_bytes(data)
        url = f"{backend.url}/view?filename=x.png"
        async with client.session.get(url) as response:
            assert await response.read() == data
            assert response.headers["Content-Disposition"] == 'filename="x.png"'
            assert "Cache-Control" not in response.headers
            etag = response.headers["ETag"]
        async with client.session.get(url, headers={"If-None-Match": etag}) as response:
            assert (response.status, await response.read()) == (304, b"")
        async with client.session.get(url, headers={"Range": "bytes=1-3"}) as response:
            assert (response.status, await response.read()) == (206, b"PNG")
            assert response.headers["Content-Range"] == f"bytes 1-3/{len(data)}"
        async with client.session.head(url) as response:
            assert int(response.headers["Content-Length"]) == len(data)


async def test_an_annotated_name_is_viewed_in_the_folder_it_names() -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        (backend.folders.input / "x.png").write_bytes(b"input")
        assert await client.get("/view", params={"filename": "x.png [input]"}) == b"input"
        assert (await client.call("GET", "/view", params={"filename": "x.png"}))[0] == 404


async def test_a_picture_is_viewed_as_preview_and_by_channel() -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        (backend.folders.output / "x.png").write_bytes(png(color=(1, 2, 3, 77)))

        async def shown(query: str) -> Image.Image:
            return Image.open(BytesIO(await client.get(f"/api/view?filename=x.png&{query}")))

        assert (await shown("preview=webp;50")).format == "WEBP"
        assert (await shown("preview=jpeg")).format == "JPEG"
        assert (await shown("preview=jpeg&channel=a")).format == "WEBP"
        assert (await shown("preview=bmp;9")).format == "WEBP"
        assert (await shown("channel=rgb")).mode == "RGB"
        assert (await shown("channel=a")).getpixel((0, 0)) == (0, 0, 0, 77)


async def test_scripts_are_downloaded_rather_than_shown() -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        (backend.folders.output / "x.html").write_bytes(b"<script>")
        async with client.session.get(f"{backend.url}/view?filename=x.html") as response:
            assert response.headers["Content-Type"] == "application/octet-stream"


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("", 404),
        ("?filename=", 400),
        ("?filename=/etc/passwd", 400),
        ("?filename=a/../b", 400),
        ("?filename=x&type=nonsense", 400),
        ("?filename=x&subfolder=../temp", 403),
        ("?filename=x&subfolder=/etc", 403),
        ("?filename=x", 404),
    ],
)
async def test_what_cannot_be_viewed_is_refused(query: str, status: int) -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        assert await client.call("GET", f"/view{query}") == (status, b"")


async def test_an_upload_of_the_same_name_is_kept_only_if_it_is_another() -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        names = []
        for data in (b"one", b"one", b"two", b"three", b"two"):
            _, answer = await client.call("POST", "/upload/image", data=upload("x.png", data))
            names.append(answer["name"])
        assert names == ["x.png", "x.png", "x (1).png", "x (2).png", "x (1).png"]
        await client.call("POST", "/upload/image", data=upload("x.png", b"new", overwrite="1"))
        assert (backend.folders.input / "x.png").read_bytes() == b"new"


async def test_an_upload_goes_where_it_says_and_nowhere_outside() -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        _, answer = await client.call("POST", "/upload/image", data=upload("x.png", b"1", type="temp", subfolder="a/b"))
        assert answer == {"name": "x.png", "subfolder": "a/b", "type": "temp"}
        assert (backend.folders.temp / "a/b/x.png").read_bytes() == b"1"
        for form in (upload("x.png", b"1", subfolder="../x"), upload("../x.png", b"1")):
            assert (await client.call("POST", "/upload/image", data=form))[0] == 400
        assert (await client.call("POST", "/upload/image", data=upload("x.png", b"1", type="models")))[0] == 500


async def test_a_mask_becomes_the_alpha_channel_of_its_original() -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        (backend.folders.output / "x.png").write_bytes(png(color=(9, 8, 7)))
        mask = png(color=(0, 0, 0, 55))
        form = upload("m.png", mask, original_ref='{"filename": "x.png", "type": "output"}')
        assert (await client.call("POST", "/upload/mask", data=form))[1]["name"] == "m.png"
        with Image.open(backend.folders.input / "m.png") as picture:
            assert picture.getpixel((0, 0)) == (9, 8, 7, 55)
        form = upload("n.png", mask, original_ref='{"filename": "none.png"}')
        assert (await client.call("POST", "/upload/mask", data=form))[0] == 200
        assert not (backend.folders.input / "n.png").exists()


async def test_a_body_over_the_limit_is_refused_in_plain_text() -> None:
    async with SimulatedBackend(max_upload_mb=0.01) as backend, Client(backend) as client:
        async with client.session.post(f"{backend.url}/prompt", data=b" " * 20_000) as response:
            assert (response.status, response.content_type) == (413, "text/plain")
        assert (await client.get("/features"))["max_upload_size"] == 10485.76


async def test_the_internal_listing_names_the_newest_file_first() -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        (backend.folders.output / "x.png").write_bytes(b"1")
        (backend.folders.output / ".hidden").write_bytes(b"1")
        assert await client.get("/internal/files/output") == ["x.png [output]"]
        assert (await client.call("GET", "/internal/files/models"))[0] == 400


async def test_models_are_the_files_on_disk() -> None:
    async with SimulatedBackend(checkpoints=("sub/a.safetensors",)) as backend, Client(backend) as client:
        (backend.folders.models / "loras" / "l.safetensors").write_bytes(b"")
        (backend.folders.models / "loras" / "notes.txt").write_bytes(b"")
        (backend.folders.models / "embeddings" / "e.pt").write_bytes(b"")
        assert await client.get("/models/checkpoints") == ["sub/a.safetensors"]
        assert await client.get("/api/models/loras") == ["l.safetensors"]
        assert await client.get("/embeddings") == ["e"]
        (file,) = await client.get("/experiment/models/checkpoints")
        assert (file["name"], file["pathIndex"]) == ("sub/a.safetensors", 0)
        metadata = await client.get("/view_metadata/checkpoints?filename=sub/a.safetensors")
        assert metadata["modelspec.title"] == "a"
        for path in ("/models/nonsense", "/experiment/models/nonsense", "/view_metadata/loras?filename=l.txt"):
            assert (await client.call("GET", path))[0] == 404


@pytest.mark.parametrize("name", ["sub/a.safetensors", "sub\\a.safetensors"])
async def test_a_server_on_windows_writes_backslashes_and_finds_files_by_either(name: str) -> None:
    async with SimulatedBackend(checkpoints=(name,), windows=True) as backend, Client(backend) as client:
        assert await client.get("/models/checkpoints") == ["sub\\a.safetensors"]
        (file,) = await client.get("/experiment/models/checkpoints")
        assert file["name"] == "sub\\a.safetensors"
        for spelling in ("sub/a", "sub%5Ca"):
            metadata = await client.get(f"/view_metadata/checkpoints?filename={spelling}.safetensors")
            assert metadata["modelspec.title"] == "a"
        assert (await client.get("/system_stats"))["system"]["os"] == "win32"


def test_the_counter_goes_on_where_the_folder_left_off(tmp_path: Path) -> None:
    folders = folders_in(tmp_path)
    for name in ("a_00007_.png", "a_x_.png", "ab_00099_.png", "a.png"):
        (folders.output / name).touch()
    assert folders.save_place("a", folders.output, 1, 1) == (folders.output, "a", 8, "")
    assert folders.save_place("s/b", folders.output, 1, 1) == (folders.output / "s", "b", 1, "s")


def test_a_prefix_may_hold_the_size_and_the_date(tmp_path: Path) -> None:
    folders = folders_in(tmp_path)
    _, name, _, _ = folders.save_place("p_%width%x%height%_%year%", folders.output, 64, 32)
    assert name.startswith("p_64x32_2")


def test_a_tensor_is_printed_as_torch_prints_it() -> None:
    assert tensor_text((2, 2), lambda at: at[0] + at[1] / 2) == "tensor([[0.0000, 0.5000],\n        [1.0000, 1.5000]])"
    assert tensor_text((3,), lambda at: at[0] * 10.0) == "tensor([ 0., 10., 20.])"
    assert tensor_text((1001,), lambda _: 0.0) == "tensor([0., 0., 0.,  ..., 0., 0., 0.])"


async def test_the_base_folder_is_kept_if_it_was_given_and_removed_if_not(tmp_path: Path) -> None:
    async with SimulatedBackend(base_dir=tmp_path) as backend, Client(backend) as client:
        await client.run(text())
    assert (tmp_path / "output").is_dir()
    async with SimulatedBackend() as backend:
        base = backend.folders.base
        assert base.is_dir()
    assert not base.exists()
