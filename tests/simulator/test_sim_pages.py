"""User data, the page, object_info, the jobs API, the origin check, and what the versions have."""

from pathlib import Path
from typing import Any

import pytest
from simulator_support import Client, endless, sampling, text
from yarl import URL

from comfyproxy.simulator import SimulatedBackend

EVERYWHERE = (
    *(
        "/prompt",
        "/queue",
        "/history",
        "/history/x",
        "/object_info",
        "/object_info/SaveImage",
        "/models",
        "/embeddings",
    ),
    *("/models/loras", "/experiment/models", "/experiment/models/loras", "/features", "/system_stats", "/extensions"),
    *("/i18n", "/workflow_templates", "/users", "/settings", "/settings/x", "/v2/userdata", "/userdata?dir=.", "/"),
)


@pytest.mark.parametrize("version", ["0.25.0", "0.3.64"])
async def test_every_route_exists_twice_and_answers_head(version: str) -> None:
    async with SimulatedBackend(version=version) as backend, Client(backend) as client:
        for path in EVERYWHERE:
            for prefix in ("", "/api"):
                for method in ("GET", "HEAD"):
                    status, body = await client.call(method, prefix + path)
                    assert (status, body != b"") == (200, method == "GET"), (method, prefix + path)


async def test_new_routes_exist_in_the_new_version_only() -> None:
    new = ("/api/jobs", "/global_subgraphs", "/global_subgraphs/x", "/node_replacements")
    async with SimulatedBackend() as backend, Client(backend) as client:
        assert [(await client.call("GET", path))[0] for path in new] == [200] * 4
        status, answer = await client.call("GET", "/api/assets")
        assert (status, answer["error"]["code"]) == (503, "SERVICE_DISABLED")
    async with SimulatedBackend(version="0.3.64") as backend, Client(backend) as client:
        assert [(await client.call("GET", path))[0] for path in (*new, "/api/assets")] == [404] * 5


async def test_there_are_no_workflow_templates_and_the_page_may_ask_for_them() -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        assert await client.get("/templates/index.json") == []
        assert await client.get("/templates/index_logo.json") == {}
        assert await client.get("/templates/fuse_options.json") == {}
        assert (await client.call("GET", "/templates/default.json"))[0] == 404


async def test_the_system_tells_which_version_it_is() -> None:
    for version, os_name in (("0.25.0", "linux"), ("0.3.64", "posix")):
        async with SimulatedBackend(version=version, name="RTX") as backend, Client(backend) as client:
            stats = await client.get("/system_stats")
            assert stats["system"]["comfyui_version"] == version
            assert stats["system"]["os"] in (os_name, "darwin", "win32")
            assert "RTX" in stats["devices"][0]["name"]


async def test_every_class_can_be_described() -> None:
    async with SimulatedBackend(checkpoints=("a.safetensors",)) as backend, Client(backend) as client:
        (backend.folders.input / "x.png").touch()
        info = await client.get("/object_info")
        assert info["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"][0] == ["a.safetensors"]
        assert info["LoadImage"]["input"]["required"]["image"] == [["x.png"], {"image_upload": True}]
        assert info["KSampler"]["output"] == ["LATENT"]
        for name, entry in info.items():
            assert entry["name"] == name
            assert len(entry["output"]) == len(entry["output_is_list"])
            assert await client.get(f"/object_info/{name}") == {name: entry}


async def test_jobs_show_what_waits_runs_and_ended() -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        workflow = {"extra_pnginfo": {"workflow": {"id": "wf"}}}
        done = await client.run(sampling(), extra_data=workflow)
        await client.run(sampling(seed=2, fail_at=1))
        await client.run(text("words"))
        socket = await client.socket("a")
        cancelled = await client.submit(endless(1), "a")
        await socket.until_event("progress")
        await client.post("/interrupt", {"prompt_id": cancelled})
        await socket.until_done(cancelled)
        socket.frames.clear()
        running = await client.submit(endless(2), "a")
        await socket.until_event("progress")
        waiting = await client.submit(text())

        async def jobs(query: str = "") -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = (await client.get(f"/api/jobs{query}"))["jobs"]
            return found

        order = ["pending", "in_progress", "cancelled", "completed", "failed", "completed"]
        assert [job["status"] for job in await jobs()] == order
        assert [job["status"] for job in await jobs("?sort_order=asc")] == order[::-1]
        assert [job["id"] for job in await jobs("?status=pending,IN_PROGRESS")] == [waiting, running]
        (job,) = await jobs("?workflow_id=wf")
        assert job["id"] == done["prompt"][1]
        assert job["preview_output"] == {**done["outputs"]["3"]["images"][0], "nodeId": "3", "mediaType": "images"}
        (failed,) = await jobs("?status=failed")
        assert failed["execution_error"]["exception_type"] == "ValueError"
        assert (await jobs("?limit=1&offset=3"))[0]["preview_output"]["content"] == "words"
        page = (await client.get("/api/jobs?limit=2&offset=1"))["pagination"]
        assert page == {"offset": 1, "limit": 2, "total": 6, "has_more": True}
        longest = (await jobs("?sort_by=execution_duration&status=cancelled,completed"))[0]
        assert longest["id"] == cancelled
        for job_id, status in ((running, "in_progress"), (waiting, "pending"), (cancelled, "cancelled")):
            assert (await client.get(f"/api/jobs/{job_id}"))["status"] == status
        full = await client.get(f"/api/jobs/{done['prompt'][1]}")
        assert (full["outputs"], full["execution_status"]) == (done["outputs"], done["status"])
        assert full["workflow"]["prompt"] == done["prompt"][2]


@pytest.mark.parametrize(
    "query", ["status=x", "sort_by=x", "sort_order=x", "limit=0", "limit=x", "offset=x", "status=pending,x"]
)
async def test_a_bad_question_for_jobs_is_answered_with_400(query: str) -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        status, answer = await client.call("GET", f"/api/jobs?{query}")
        assert status == 400
        assert answer["error"]


async def test_a_foreign_page_is_refused_and_one_of_the_same_origin_is_not() -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        for headers, status in (
            ({"Origin": "http://evil.example"}, 403),
            ({"Origin": backend.url}, 200),
            ({"Origin": "http://127.0.0.1:1"}, 403),
            ({"Origin": "http://127.0.0.1"}, 200),
            ({"Origin": "null"}, 200),
            ({"Origin": "http://evil.example", "Host": "gpu.example"}, 200),
            ({"Sec-Fetch-Site": "cross-site"}, 403),
            ({"Sec-Fetch-Site": "same-site"}, 200),
        ):
            assert (await client.call("GET", "/prompt", headers=headers))[0] == status, headers
    async with SimulatedBackend(version="0.3.64") as backend, Client(backend) as client:
        assert (await client.call("GET", "/prompt", headers={"Sec-Fetch-Site": "cross-site"}))[0] == 200


async def test_user_data_is_stored_moved_listed_and_deleted() -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        url = f"{backend.url}/api/userdata"
        a, b = (URL(f"{url}/workflows%2F{name}.json", encoded=True) for name in "ab")
        async with client.session.post(a, params={"full_info": "true"}, data=b"{}") as response:
            info = await response.json()
            assert (info["path"], info["size"], type(info["modified"])) == ("workflows/a.json", 2, int)
        async with client.session.post(a, params={"overwrite": "false"}, data=b"{}") as response:
            assert (response.status, await response.text()) == (409, "File already exists")
        move = URL(f"{url}/workflows%2Fa.json/move/workflows%2Fb.json", encoded=True)
        async with client.session.post(move) as response:
            assert await response.json() == "workflows/b.json"
        assert await client.get("/userdata?dir=workflows&split=true") == [["b.json", "b.json"]]
        (folder, file) = await client.get("/v2/userdata")
        assert (folder["path"], file["path"]) == ("workflows", "workflows/b.json")
        async with client.session.delete(b) as response:
            assert response.status == 204
        async with client.session.delete(b) as response:
            assert response.status == 404
        assert ("DELETE", "/api/userdata/workflows%2Fb.json") in backend.requests


async def test_settings_are_kept_one_by_one_or_many_at_once() -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        assert (await client.get("/users"))["migrated"] is False
        await client.post("/settings", {"a": 1, "b": 2})
        await client.post("/settings/b", [3])
        assert await client.get("/settings") == {"a": 1, "b": [3]}
        assert await client.get("/settings/c") is None
        assert (await client.get("/users"))["migrated"] is True


async def test_log_lines_go_to_those_who_subscribed() -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        socket = await client.socket("a")
        await client.call("PATCH", "/internal/logs/subscribe", json={"clientId": "a", "enabled": True})
        await client.submit(text())
        assert (await socket.until_event("logs"))["data"]["entries"][0]["m"] == "got prompt\n"
        assert "got prompt" in await client.get("/internal/logs")
        assert (await client.get("/internal/logs/raw"))["size"] == {"cols": 80, "rows": 24}


async def test_a_frontend_is_served_with_the_cache_headers_of_the_version(tmp_path: Path) -> None:
    (tmp_path / "extensions/core").mkdir(parents=True)
    (tmp_path / "index.html").write_text("page")
    (tmp_path / "extensions/core/x.js").write_text("script")
    async with SimulatedBackend(frontend=tmp_path) as backend, Client(backend) as client:
        async with client.session.get(backend.url) as response:
            assert await response.text() == "page"
            assert response.headers["Cache-Control"] == "no-store, must-revalidate"
        async with client.session.get(f"{backend.url}/extensions/core/x.js") as response:
            assert response.headers["Cache-Control"] == "no-store"
        assert await client.get("/extensions") == ["/extensions/core/x.js"]
        assert (await client.call("GET", "/no/such/path"))[0] == 404
        assert (await client.call("PUT", "/prompt"))[0] == 405
        assert (await client.call("OPTIONS", "/no/such/path"))[0] == 200


async def test_websockets_offer_compression_and_send_no_pings() -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        ws = await client.session.ws_connect(f"{backend.url}/ws", compress=15, autoping=False)
        assert ws.compress == 15
        assert (await ws.receive_json())["type"] == "status"
        with pytest.raises(TimeoutError):
            await ws.receive(timeout=0.05)
        await ws.close()


async def test_a_server_may_lack_a_class_and_refuses_prompts_that_need_it() -> None:
    async with SimulatedBackend(without_nodes=("ConformanceText",)) as backend, Client(backend) as client:
        assert "ConformanceText" not in await client.get("/object_info")
        assert (await client.post("/prompt", {"prompt": text()}))[1]["error"]["type"] == "missing_node_type"


async def test_custom_events_reach_the_one_or_all() -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        one, two = await client.socket("one"), await client.socket("two")
        backend.emit("custom.one", {"x": 1}, "one")
        backend.emit("custom.all", {})
        assert (await one.until_event("custom.one"))["data"] == {"x": 1}
        await two.until_event("custom.all")
        assert not two.data("custom.one")
