"""The real web page of ComfyUI, in a real browser, through the whole proxy.

By hand it can be pointed at any server, a real ComfyUI or a proxy in front of some, which needs the nodes of the
conformance kit: TEST_PAGE_URL=http://127.0.0.1:8188 pytest tests/browser

What a failed test saw is kept in build/artifacts, or in the folder that TEST_ARTIFACTS names.
"""

import os
import re
import shutil
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from browser_frontends import FrontendUnavailableError, frontend
from browser_site import CHECKPOINT, Site, proxied_site
from browser_tab import LISTEN, SIZE, Tab, colors, near, pixels
from browser_workflows import SHADE, copying, sampling
from simulator_support import png, txt2img

if TYPE_CHECKING:
    from playwright.async_api import Browser, BrowserContext, FilePayload

# One worker: a browser takes both cores of a small machine.
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("browser")]

GIVEN_URL = os.environ.get("TEST_PAGE_URL")
ARTIFACTS = Path(os.environ.get("TEST_ARTIFACTS") or Path(__file__).parents[2] / "build" / "artifacts")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # the page asks its makers for news
)
TIMEOUT_MS = 20_000


@dataclass(frozen=True)
class Release:
    """A web page, and the version of the servers that it belongs to."""

    frontend: str
    comfyui: str


RELEASES = (Release("1.45.15", "0.25.0"), Release("1.58.1", "0.26.0"))


class Visit:
    """One browser without a past, in front of one site."""

    def __init__(self, context: "BrowserContext", site: Site) -> None:
        self.context, self.site = context, site
        self.tabs: list[Tab] = []

    async def tab(self, **how: Any) -> Tab:
        """Open the page in a new tab."""
        tab = Tab(await self.context.new_page(), self.site.url)
        self.tabs.append(tab)
        await tab.open(**how)
        return tab

    async def twin_of(self, tab: Tab) -> Tab:
        """Duplicate a tab: the new one has its page's name and its session storage, and so its client id."""
        async with tab.page.expect_popup() as popup:
            await tab.page.evaluate("void (window.open(location.href).name = window.name)")
        twin = Tab(await popup.value, self.site.url)
        self.tabs.append(twin)
        await twin.ready()
        return twin

    async def keep(self, name: str) -> str:
        """Write down how it came to this, for whoever looks into a failure; return where."""
        folder = ARTIFACTS / name.replace("[", "-").replace("]", "")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for number, tab in enumerate(self.tabs, 1):
            heard = "the tab has gone"
            with suppress(Exception):  # the failure is the test's, not this one
                await tab.step("failed")
                heard = await tab.page.evaluate("JSON.stringify(window.heard, null, 1)")
            for step, (title, picture) in enumerate(tab.pictures, 1):
                (folder / f"tab-{number}-{step:02}-{title.replace(' ', '-')}.png").write_bytes(picture)
            (folder / f"tab-{number}-heard.json").write_text(heard)
            (folder / f"tab-{number}-problems.txt").write_text("\n".join(tab.problems))
        return f"what each tab showed, heard and complained of is in {folder}"


Visiting = Callable[[], AbstractAsyncContextManager[Visit]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator["Browser"]:
    playwright_api = pytest.importorskip("playwright.async_api", reason="the package playwright is not installed")
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        pytest.skip(f"there is no browser: none of {', '.join(BROWSERS)}")
    async with playwright_api.async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="module", params=[None] if GIVEN_URL else RELEASES, ids=lambda r: r and r.frontend)
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    if GIVEN_URL:
        yield Site(GIVEN_URL)
        return
    try:
        page = frontend(request.param.frontend)
    except FrontendUnavailableError as exc:
        pytest.skip(str(exc))
    async with proxied_site(request.param.comfyui, page, tmp_path) as site:
        yield site


@pytest.fixture
def visiting(browser: "Browser", site: Site, request: pytest.FixtureRequest) -> Visiting:
    """Visit the site, in the test itself: so its failure is known, and the pictures are kept."""

    @asynccontextmanager
    async def visit() -> AsyncIterator[Visit]:
        width, height = SIZE
        async with await browser.new_context(viewport={"width": width, "height": height}) as context:
            context.set_default_timeout(TIMEOUT_MS)
            await context.add_init_script(LISTEN)
            visit = Visit(context, site)
            try:
                yield visit
                assert [problem for tab in visit.tabs for problem in tab.problems] == []
            except BaseException as exc:
                exc.add_note(await visit.keep(request.node.name))
                raise

    return visit


def prefix() -> str:
    """A name for files that no other test has used, also on a server that lives on."""
    return f"page-{uuid.uuid4().hex[:8]}"


async def test_the_page_opens_and_greets_a_newcomer(visiting: Visiting, site: Site) -> None:
    async with visiting() as visit:
        tab = await visit.tab(newcomer=True)
        await tab.page.get_by_role("dialog").wait_for()
        await tab.page.wait_for_load_state("networkidle")
        assert tab.problems == []
        await tab.step("greeted")
        await tab.page.keyboard.press("Escape")
        await tab.page.get_by_role("dialog").wait_for(state="hidden")
        assert len(colors(await tab.step("opened"))) > 100
        # It was given its client id by the server, and keeps it.
        assert await tab.page.evaluate("asked") == [site.url.replace("http", "ws", 1) + "/ws"]
        assert await tab.client_id() == await tab.page.evaluate("sessionStorage.clientId")
        await tab.reload(newcomer=True)
        assert (await tab.page.evaluate("asked"))[0].endswith(f"/ws?clientId={await tab.client_id()}")
        assert await tab.page.get_by_role("dialog").count() == 0


async def test_a_graph_as_the_api_takes_it_makes_a_picture(visiting: Visiting, site: Site) -> None:
    if not site.is_ours:
        pytest.skip("a given server may lack the model")
    async with visiting() as visit:
        tab = await visit.tab()
        await tab.drop("graph", txt2img(CHECKPOINT, steps=20, width=512, height=512))
        await tab.fit()
        site.hurry()
        await tab.hears("execution_success", await tab.run())
        picture = await tab.page.request.get(await tab.shows("SaveImage", "/api/view?"))
        assert picture.ok
        assert len(colors(await picture.body())) > 1000
        await tab.step("made")


async def test_progress_preview_and_picture_are_seen_on_the_nodes(visiting: Visiting, site: Site) -> None:
    async with visiting() as visit:
        tab = await visit.tab()
        name = prefix()
        await tab.drop("steps", sampling(steps=100, seconds=site.long_s, prefix=name))
        await tab.step("loaded")
        prompt_id = await tab.run()
        await tab.progresses("ConformanceSampler", 0.02)
        await tab.page.wait_for_function("() => /\\[\\d+%\\] ConformanceSampler/.test(document.title)")
        await tab.shows("ConformanceSampler", "blob:")
        await tab.sees("a bar", (0, 128, 0), least=30)
        preview = await tab.step("a preview")
        assert pixels(preview, lambda seen: near((seen[0], 0, seen[2]), (SHADE, 0, 0)) and seen[1] < 200) > 2000
        site.hurry()
        await tab.hears("execution_success", prompt_id)
        address = await tab.shows("SaveImage", name)
        if site.is_ours:
            (ran,) = (backend for backend, prompts in site.fleet.executed.items() if prompts)
            assert f"subfolder={ran}" in address
        await tab.sees("the picture", (SHADE, SHADE, SHADE), least=20_000)
        await tab.page.wait_for_function("() => !document.title.includes('%')")


async def test_queue_and_history_show_what_waits_runs_and_ended(visiting: Visiting, site: Site) -> None:
    async with visiting() as visit:
        tab = await visit.tab()
        name = prefix()
        await tab.drop("quick", sampling(steps=2, seconds=0.1, prefix=name))
        ended = await tab.run()
        await tab.hears("execution_success", ended)
        await tab.drop("slow", sampling(steps=100, seconds=site.long_s, prefix=name, seed=4, after="increment"))
        others = [await tab.run() for _ in range(4)]
        running, waiting = await queue_of(tab)
        assert waiting
        assert {*running, *waiting} == {*others}
        await tab.open_queue()
        await tab.page.get_by_text(f"{len(running)} running, {len(waiting)} queued").wait_for()
        for prompt_id in (*waiting, *running, ended):
            await tab.job(prompt_id).wait_for()
        await tab.loaded(tab.job(ended).get_by_role("img"))
        await tab.page.get_by_test_id("job-assets-list").get_by_text(re.compile(r"Sampler\W+[1-9]\d*%")).wait_for()
        await tab.step("queue")
        await tab.open_sidebar("Assets")
        await tab.loaded(tab.page.get_by_role("img", name=name).first)
        await tab.step("history")
        await tab.page.get_by_role("button", name="Clear queued").click()
        await tab.page.get_by_text(f"{len(running)} running", exact=True).wait_for()
        site.hurry()
        for prompt_id in running:
            await tab.hears("execution_success", prompt_id)
            await tab.loaded(tab.job(prompt_id).get_by_role("img"))
        assert await tab.job(waiting[0]).count() == 0


async def test_a_waiting_and_a_running_prompt_can_be_cancelled(visiting: Visiting, site: Site) -> None:
    async with visiting() as visit:
        tab = await visit.tab()
        await tab.drop("slow", sampling(steps=100, seconds=site.long_s, prefix=prefix(), after="increment"))
        for _ in range(4):
            await tab.run()
        running, waiting = await queue_of(tab)
        await tab.open_queue()
        await tab.step("queue")
        await tab.press_cancel(waiting[0])
        await tab.job(waiting[0]).wait_for(state="hidden")
        assert waiting[0] not in (await queue_of(tab))[1]
        await tab.step("less one that waited")
        await tab.hears("progress", running[0])
        await tab.press_cancel(running[0])
        await tab.hears("execution_interrupted", running[0])
        await tab.job(running[0]).get_by_text("Failed").first.wait_for()
        await tab.step("less one that ran")
        history = await (await tab.page.request.get(f"{site.url}/api/history/{running[0]}")).json()
        assert history[running[0]]["status"]["messages"][-1][0] == "execution_interrupted"
        await tab.page.request.post(f"{site.url}/api/queue", data={"clear": True})
        await tab.page.request.post(f"{site.url}/api/interrupt", data={})


async def test_an_uploaded_picture_is_shown_and_used(visiting: Visiting, site: Site) -> None:
    async with visiting() as visit:
        first, second, result = f"{prefix()}.png", f"{prefix()}.png", prefix()
        form: dict[str, str | float | bool | bytes | FilePayload] = {"image": picture(first, (30, 30, 200))}
        assert (await visit.context.request.post(f"{site.url}/api/upload/image", multipart=form)).ok
        tab = await visit.tab()
        await tab.drop("upload", copying(first, result))
        await tab.shows("LoadImage", first)
        await tab.step("loaded")
        await tab.upload("LoadImage", picture(second, (200, 30, 30)))
        await tab.shows("LoadImage", second)
        await tab.sees("uploaded", (200, 30, 30), least=2000)
        await tab.hears("execution_success", await tab.run())
        await tab.shows("SaveImage", result)
        await tab.sees("used", (200, 30, 30), least=4000)
        if site.is_ours:
            (ran,) = (backend for backend, prompts in site.fleet.executed.items() if prompts)
            await site.fleet[ran].kill()
            await tab.hears("execution_success", await tab.run())
            (other,) = (backend for backend, prompts in site.fleet.executed.items() if prompts and backend != ran)
            await tab.shows("SaveImage", f"subfolder={other}")


async def test_two_tabs_of_one_client_id_both_see_the_run(visiting: Visiting, site: Site) -> None:
    async with visiting() as visit:
        tab = await visit.tab()
        if (await tab.page.request.get(f"{site.url}/readyz")).status == 404:
            pytest.skip("a ComfyUI without a proxy forgets the first tab")
        name = prefix()
        workflow = sampling(steps=100, seconds=site.long_s, prefix=name)
        await tab.drop("shared", workflow)
        twin = await visit.twin_of(tab)
        assert await twin.client_id() == await tab.client_id()
        await twin.drop("shared", workflow)
        prompt_id = await tab.run()
        for each in visit.tabs:
            await each.page.bring_to_front()
            await each.progresses("ConformanceSampler", 0.01)
            await each.step("runs")
        site.hurry()
        for each in visit.tabs:
            await each.hears("execution_success", prompt_id)
            await each.shows("SaveImage", name)
            await each.page.bring_to_front()
            await each.sees("the picture", (SHADE, SHADE, SHADE), least=20_000)
        # When one closes, the other goes on.
        await visit.tabs.pop(0).page.close()
        await twin.hears("execution_success", await twin.run())


async def test_a_page_reloaded_in_mid_run_sees_the_end(visiting: Visiting, site: Site) -> None:
    async with visiting() as visit:
        tab = await visit.tab()
        name = prefix()
        await tab.drop("reloaded", sampling(steps=100, seconds=site.long_s, prefix=name))
        prompt_id = await tab.run()
        await tab.progresses("ConformanceSampler", 0.01)
        client_id = await tab.client_id()
        await tab.step("runs")
        await tab.reload()
        assert await tab.client_id() == client_id
        await tab.holds("ConformanceSampler", "SaveImage")
        await tab.progresses("ConformanceSampler", 0.01)
        await tab.step("still runs")
        site.hurry()
        await tab.hears("execution_success", prompt_id)
        await tab.shows("SaveImage", name)
        await tab.sees("the picture", (SHADE, SHADE, SHADE), least=20_000)


async def test_a_saved_workflow_is_found_after_its_server_died(visiting: Visiting, site: Site) -> None:
    async with visiting() as visit:
        tab = await visit.tab()
        name = f"kept {prefix()}"
        await tab.drop("kept", sampling(steps=2, seconds=0.1, prefix=prefix()))
        await tab.save_as(name)
        await tab.step("saved")
        if site.is_ours:
            settings = await tab.page.request.get(f"{site.url}/api/settings")
            home = settings.headers["x-comfyproxy-backend"]
            await site.fleet[home].kill()
            await site.proxy.state_is(home, "unhealthy")
    async with visiting() as visit:
        tab = await visit.tab()
        await tab.open_sidebar("Workflows")
        saved = tab.page.get_by_test_id("workflows-sidebar").get_by_role("treeitem", name=name)
        await saved.click()
        await tab.holds("EmptyImage", "ConformanceSampler", "SaveImage")
        await tab.page.wait_for_function("name => document.title.includes(name)", arg=name)
        await tab.step("found")
        await tab.hears("execution_success", await tab.run())


def picture(name: str, color: tuple[int, int, int]) -> "FilePayload":
    """A file that a browser can send."""
    return {"name": name, "mimeType": "image/png", "buffer": png(80, 60, color)}


async def queue_of(tab: Tab) -> tuple[list[str], list[str]]:
    """Return the ids of what runs and of what waits."""
    queue = await (await tab.page.request.get(f"{tab.url}/api/queue")).json()
    running, waiting = queue["queue_running"], sorted(queue["queue_pending"], key=lambda item: item[0])
    return [item[1] for item in running], [item[1] for item in waiting]
