// Drives @stable-canvas/comfyui-client; reads what to do from stdin as JSON, and prints what came of it.

import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { text } from "node:stream/consumers";
import { setTimeout as sleep } from "node:timers/promises";
import { Client } from "@stable-canvas/comfyui-client";
import WebSocket from "ws";

const given = JSON.parse(await text(process.stdin));

async function hashesOf(result) {
  const urls = result.images.filter((image) => image.type === "url").map((image) => image.data);
  const files = await Promise.all(urls.map(async (url) => Buffer.from(await (await fetch(url)).arrayBuffer())));
  return files.map((data) => createHash("sha256").update(data).digest("hex"));
}

async function upload(client, file) {
  const body = new FormData();
  body.append("image", new Blob([await readFile(file)]), "source.png");
  body.append("overwrite", "true");
  return (await client.fetchApi("/upload/image", { method: "POST", body })).json();
}

// Run a workflow, told by the websocket.
async function make(client, graph) {
  const told = { progress: 0, previews: 0 };
  const off = client.on("b_preview", () => (told.previews += 1));
  const result = await client.enqueue(graph, { progress: () => (told.progress += 1) });
  off();
  return { ...told, id: result.prompt_id, hashes: await hashesOf(result) };
}

// Run a workflow, asking for it now and then.
async function makeByPolling(client, graph) {
  const result = await client.enqueue_polling(graph, { polling_ms: 50 });
  return { id: result.prompt_id, hashes: await hashesOf(result) };
}

async function until(client, id, state) {
  while (!(await client.getPromptStatus(id))[state]) await sleep(20);
}

async function refuse(client, graph) {
  try {
    await client._enqueue_prompt(graph);
  } catch (error) {
    return error.name;
  }
}

// Cancel two workflows: one that runs, by its id, and one that waits.
async function cancel(client, graphs) {
  const ids = [];
  for (const graph of graphs) ids.push((await client._enqueue_prompt(graph)).prompt_id);
  const last = ids.at(-1);
  await until(client, last, "pending");
  await until(client, ids[0], "running");
  await client.deleteItem("queue", last);
  const waiting = await client.getPromptStatus(last);
  await client.interrupt(ids[0]);
  await until(client, ids[0], "done");
  const others = await client.getQueue();
  const interrupted = (await client.getHistory()).History.find((item) => item.prompt[1] === ids[0]);
  for (const id of ids.slice(1, -1)) await client.interrupt(id);
  return {
    ids,
    waiting,
    interrupted: interrupted.status.messages.at(-1)[0],
    stillRunning: others.Running.map((item) => item[1]).sort(),
  };
}

const client = new Client({ api_host: new URL(given.url).host, WebSocket });
await client.connect();
const uploaded = await upload(client, given.file);
given.workflow["1"].inputs.image = uploaded.name;
const answer = {
  uploaded,
  made: await make(client, given.workflow),
  polled: await Promise.all(given.workflows.map((graph) => makeByPolling(client, graph))),
  refused: await refuse(client, given.impossible),
  checkpoints: await client.getSDModels(),
  samplers: (await client.getSamplers()).length,
  cancelled: await cancel(client, given.unending),
};
client.close();
console.log(JSON.stringify(answer));
process.exit(0);
