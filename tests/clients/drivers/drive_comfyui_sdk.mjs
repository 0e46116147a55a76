// Drives @saintno/comfyui-sdk; reads what to do from stdin as JSON, and prints what came of it.

import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { text } from "node:stream/consumers";
import { CallWrapper, ComfyApi, ComfyPool, EQueueMode, PromptBuilder } from "@saintno/comfyui-sdk";

const given = JSON.parse(await text(process.stdin));

// After so long without a message it connects anew, and gives up what runs; 10 s are little for a busy machine.
const connect = (url) => new ComfyApi(url, undefined, { wsTimeout: 60_000 });

const builder = (graph) => new PromptBuilder(graph, [], ["images"]).setOutputNode("images", "3");

async function hashOf(api, image) {
  const data = Buffer.from(await (await api.getImage(image)).arrayBuffer());
  return createHash("sha256").update(data).digest("hex");
}

// Run a workflow to its end, however it ends; `onProgress` may act on it meanwhile.
function call(api, graph, onProgress = () => {}) {
  const told = { progress: 0, previews: 0, nodes: [] };
  return new Promise((resolve) => {
    const end = (result) => resolve({ ...told, ...result });
    new CallWrapper(api, builder(graph))
      .onPending((id) => (told.id = id))
      .onStart((id) => (told.started = id))
      .onProgress((info) => {
        told.progress += 1;
        onProgress(info);
      })
      .onPreview((blob) => (told.previews += blob.size > 0 ? 1 : 0))
      .onFinished((output, id) => end({ finished: id, image: output.images.images[0] }))
      .onFailed((error) => end({ error: `${error.name}: ${error.message}` }))
      .run();
  });
}

async function make(api, graph) {
  const made = await call(api, graph);
  return { ...made, hash: made.image && (await hashOf(api, made.image)) };
}

// Interrupt a workflow when it runs.
async function cancelRunning(api, graph) {
  let interrupted;
  const ended = await call(api, graph, () => (interrupted ??= api.interrupt()));
  await interrupted;
  return ended;
}

// Queue a workflow behind those that run, and take it out again.
async function cancelWaiting(api, graph) {
  const { prompt_id } = await api.appendPrompt(graph);
  const has = async () => (await api.getQueue()).queue_pending.some((item) => item[1] === prompt_id);
  const before = await has();
  await api.manageQueue({ delete: [prompt_id] });
  return { id: prompt_id, before, after: await has() };
}

// Run workflows at the same time, each on a connection of its own: the package takes the end of any prompt of a
// connection for the end of the one that it waits for.
function together(url, graphs) {
  return Promise.all(
    graphs.map(async (graph) => {
      const api = await connect(url).init().waitForReady();
      const made = await make(api, graph);
      api.destroy();
      return made;
    }),
  );
}

// Let the package spread workflows itself. It waits for a connection whose server has nothing to do.
async function pool(url, graphs) {
  const comfy = new ComfyPool([connect(url), connect(url)], EQueueMode.PICK_ZERO);
  const made = await comfy.batch(graphs.map((graph) => (api) => make(api, graph)));
  comfy.destroy();
  return made;
}

const api = await connect(given.url).init().waitForReady();
const uploaded = await api.uploadImage(await readFile(given.file), "source.png", { override: true });
given.workflow["1"].inputs.image = uploaded.info.name;
const answer = {
  uploaded: uploaded.info,
  made: await make(api, given.workflow),
  again: await make(api, given.workflow),
  refused: (await call(api, given.impossible)).error,
  checkpoints: await api.getCheckpoints(),
  devices: (await api.getSystemStats()).devices.length,
  cancelledRunning: await cancelRunning(api, given.unending[0]),
  together: await together(given.url, given.workflows.slice(2)),
  pool: await pool(given.url, given.workflows.slice(0, 2)),
};
for (const graph of given.unending) await api.appendPrompt(graph);
answer.cancelledWaiting = await cancelWaiting(api, given.last);
answer.running = (await api.getQueue()).queue_running.length;
await api.interrupt();
api.destroy();
console.log(JSON.stringify(answer));
process.exit(0);
