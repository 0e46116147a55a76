"""ComfyUI's web page in one tab of a browser: what a person does in it, and what a person sees."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from io import BytesIO
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from PIL import Image

if TYPE_CHECKING:
    from browser_workflows import Workflow
    from playwright.async_api import ConsoleMessage, FileChooser, FilePayload, Locator, Page, Request, Response

Color = tuple[int, int, int]

SIZE = (1280, 800)
_TOLERANCE = 6  # previews are JPEG

# What a page hears, whatever its version calls the objects that hear it.
LISTEN = """
window.heard = [];
window.asked = [];
window.WebSocket = class extends WebSocket {
    constructor(...args) {
        super(...args);
        window.asked.push(String(args[0]));
        this.addEventListener("message", event => {
            if (typeof event.data === "string") window.heard.push(JSON.parse(event.data));
        });
    }
};
"""
_READY = """newcomer => {
    const workflows = window.app?.vueAppReady && app.api.clientId && app.extensionManager?.workflow;
    if (!workflows?.activeWorkflow || workflows.isBusy || document.querySelector(".p-blockui-mask")) return false;
    return newcomer || app.graph.nodes.length > 0;
}"""
_DROP = """([name, text]) => {
    const data = new DataTransfer();
    data.items.add(new File([text], name, {type: "application/json"}));
    const canvas = document.querySelector("#graph-canvas");
    for (const kind of ["dragenter", "dragover", "drop"]) {
        const where = {clientX: 600, clientY: 700, dataTransfer: data};
        canvas.dispatchEvent(new DragEvent(kind, {bubbles: true, cancelable: true, ...where}));
    }
}"""
_OPEN = """name => {
    const {activeWorkflow, isBusy} = app.extensionManager.workflow;
    const idle = !isBusy && !document.querySelector(".p-blockui-mask");
    return idle && activeWorkflow.filename.includes(name) && document.title.includes(name);
}"""
_HOLDS = "kinds => kinds.every(kind => app.graph.nodes.some(node => node.type === kind))"
_HEARD = "([event, id]) => heard.some(m => m.type === event && m.data.prompt_id === id)"
_PROGRESS = "([kind, least]) => app.graph.nodes.find(node => node.type === kind)?.progress >= least"
_IMAGE = """([kind, part]) => {
    const image = app.graph.nodes.find(node => node.type === kind)?.imgs?.[0];
    return image?.complete && image.naturalWidth > 0 && image.src.includes(part) && image.src;
}"""
# A widget is drawn on the canvas and no element, so where it is must be computed, once nothing moves any more.
_BUTTON = """async kind => {
    const still = [];
    while (new Set(still.slice(-10)).size !== 1 || still.length < 10) {
        await new Promise(requestAnimationFrame);
        still.push(String([app.canvas.ds.scale, ...app.canvas.ds.offset]));
    }
    const node = app.graph.nodes.find(node => node.type === kind);
    const button = node.widgets.find(widget => widget.type === "button");
    const {scale, offset} = app.canvas.ds;
    const canvas = app.canvas.canvas.getBoundingClientRect();
    const x = node.pos[0] + node.size[0] / 2, y = node.pos[1] + (button.last_y ?? button.y) + 10;
    return [canvas.left + (x + offset[0]) * scale, canvas.top + (y + offset[1]) * scale];
}"""

# What a real server does not have either: files that the user may make, and a picture for the tab.
_MAY_BE_MISSING = (
    *("/user.css", "/api/userdata/user.css", "/api/userdata/comfy.templates.json", "/favicon.ico"),
    *("/api/userdata?dir=workflows", "/api/userdata?dir=subgraphs", "/api/userdata/workflows%2F.index.json"),
)
# What the page says of itself in front of every server.
_MAY_BE_SAID = ("Failed to load resource", "ComfyApp graph accessed before initialization")


class Tab:
    """One tab.

    Attributes:
        problems: errors on the console, requests that failed, exceptions that nobody caught.
        pictures: what the page looked like at each step.
    """

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.url = page, url
        self.problems: list[str] = []
        self.pictures: list[tuple[str, bytes]] = []
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.problems.append(f"exception: {error}"))
        page.on("response", self._answered)
        page.on("requestfailed", self._failed)

    async def open(self, *, newcomer: bool = False) -> None:
        """Load the page, and wait until it can be used.

        Args:
            newcomer: have it greet whoever comes for the first time.
        """
        done = f"{self.url}/api/settings/Comfy.TutorialCompleted"
        await self.page.request.post(done, data=json.dumps(not newcomer))
        await self.page.goto(self.url)
        await self.ready(newcomer=newcomer)

    async def reload(self, *, newcomer: bool = False) -> None:
        await self.page.reload()
        await self.ready(newcomer=newcomer)

    async def ready(self, *, newcomer: bool = False) -> None:
        """Wait until the page can be used; a newcomer's graph is empty."""
        await self.page.wait_for_function(_READY, arg=newcomer)

    async def step(self, name: str) -> bytes:
        """Keep a picture of the page in case that the test fails; return it."""
        picture = await self.page.screenshot()
        self.pictures.append((name, picture))
        return picture

    async def client_id(self) -> str:
        found: str = await self.page.evaluate("app.api.clientId")
        return found

    async def drop(self, name: str, workflow: Workflow) -> None:
        """Drag a file onto the canvas: a saved workflow, or a graph as the API takes it."""
        await self.page.evaluate(_DROP, [f"{name}.json", json.dumps(workflow)])
        nodes = workflow["nodes"] if "nodes" in workflow else workflow.values()
        await self.holds(*(node.get("type") or node["class_type"] for node in nodes))
        await self.page.wait_for_function(_OPEN, arg=name)

    async def holds(self, *kinds: str) -> None:
        """Wait until the graph has nodes of these classes."""
        await self.page.wait_for_function(_HOLDS, arg=list(kinds))

    async def run(self) -> str:
        """Press Run; return the id of the prompt."""
        await self.page.bring_to_front()  # what blocks a page goes away only where somebody looks at it
        async with self.page.expect_response(lambda answer: answer.url.endswith("/api/prompt")) as answer:
            await self.page.get_by_test_id("queue-button").click()
        prompt_id: str = (await (await answer.value).json())["prompt_id"]
        return prompt_id

    async def hears(self, event: str, prompt_id: str) -> None:
        """Wait until the server has told this tab so of a prompt, since it was loaded."""
        await self.page.wait_for_function(_HEARD, arg=[event, prompt_id], polling=50)

    async def progresses(self, kind: str, least: float) -> None:
        """Wait until the bar on a node is at least as long; a whole one is 1."""
        await self.page.wait_for_function(_PROGRESS, arg=[kind, least])

    async def shows(self, kind: str, part: str) -> str:
        """Wait until a node has loaded an image whose address contains `part`; return the address."""
        found = await self.page.wait_for_function(_IMAGE, arg=[kind, part], polling=50)
        address: str = await found.json_value()
        return address

    async def loaded(self, image: Locator) -> None:
        """Wait until an image element shows something."""
        await image.wait_for()
        await self.page.wait_for_function(
            "image => image.complete && image.naturalWidth > 0", arg=await image.element_handle()
        )

    async def sees(self, what: str, color: Color, least: int) -> None:
        """Wait until that many pixels of the page have a colour; it is a step of the name `what`."""
        async with asyncio.timeout(10):
            while (found := pixels(await self.step(what), lambda seen: near(seen, color))) < least:
                self.pictures.pop()
        assert found >= least

    async def fit(self) -> None:
        """Bring the whole graph into sight: images of nodes are loaded when they are drawn."""
        await self.page.get_by_role("button", name="Fit View").click()

    async def upload(self, kind: str, file: FilePayload) -> None:
        """Press the button on a node, and choose a file in the dialog that comes up.

        The canvas passes over a click that comes while it is busy, so it is pressed until it is heard.
        """
        chosen: asyncio.Future[FileChooser] = asyncio.get_running_loop().create_future()
        self.page.once("filechooser", lambda chooser: chosen.set_result(chooser))  # it takes no bound method of C
        async with asyncio.timeout(20):
            while not chosen.done():
                await self.page.mouse.click(*await self.page.evaluate(_BUTTON, kind))
                await asyncio.wait([chosen], timeout=1)
        await chosen.result().set_files([file])

    async def save_as(self, name: str) -> None:
        await self.page.keyboard.press("Control+s")
        dialog = self.page.get_by_role("dialog")
        await dialog.get_by_role("textbox").fill(name)
        async with self.page.expect_response(lambda answer: "/api/userdata/workflows%2F" in answer.url) as answer:
            await dialog.get_by_role("button", name="Confirm").click()
        assert (await answer.value).ok
        await self.page.wait_for_function("name => document.title.startsWith(name)", arg=name)

    async def open_sidebar(self, name: str) -> None:
        await self.page.get_by_role("button", name=name).first.click()

    async def open_queue(self) -> None:
        """Open the list of jobs; a page of the same user may have left it open."""
        jobs = self.page.get_by_test_id("job-assets-list")
        if not await jobs.is_visible():
            await self.page.get_by_test_id("queue-overlay-toggle").click()
        await jobs.wait_for()

    def job(self, prompt_id: str) -> Locator:
        """The row of a prompt in the list of jobs."""
        return self.page.get_by_test_id("job-assets-list").locator(f"[data-job-id='{prompt_id}']")

    async def press_cancel(self, prompt_id: str) -> None:
        """Press the button that shows up under the pointer."""
        await self.job(prompt_id).hover()
        await self.job(prompt_id).get_by_role("button", name="Cancel").click()

    def _said(self, message: ConsoleMessage) -> None:
        if message.type == "error" and not message.text.startswith(_MAY_BE_SAID):
            self.problems.append(f"console: {message.text}")

    def _answered(self, response: Response) -> None:
        path = response.url.removeprefix(self.url)
        if response.status >= 400 and not (response.status == 404 and path.startswith(_MAY_BE_MISSING)):
            self.problems.append(f"{response.status}: {response.request.method} {response.url}")

    def _failed(self, request: Request) -> None:
        """Note what the server broke: an abort is the page's own doing, and other hosts are out of reach."""
        ours = urlsplit(request.url).netloc == urlsplit(self.url).netloc
        if ours and request.failure != "net::ERR_ABORTED":
            self.problems.append(f"{request.failure}: {request.method} {request.url}")


def near(seen: Color, wanted: Color) -> bool:
    """Whether two colours look alike."""
    return all(abs(one - other) <= _TOLERANCE for one, other in zip(seen, wanted, strict=True))


def pixels(picture: bytes, wanted: Callable[[Color], bool]) -> int:
    """Count the pixels of some colours."""
    return sum(count for count, color in colors(picture) if wanted(color))


def colors(picture: bytes) -> list[tuple[int, Color]]:
    """Return how often each colour occurs."""
    with Image.open(BytesIO(picture)) as image:
        found: Any = image.convert("RGB").getcolors(image.width * image.height)
    counted: list[tuple[int, Color]] = found
    return counted
