// A backend: trains a LoRA for an order, once however often the order is sent.
//
//   KEY=twk_... node backend.ts http://127.0.0.1:8080 ORDER job.json images.zip results
//
// job.json is a job without a dataset: images.zip is uploaded and named in it. It needs client.ts and
// training-worker.ts of deploy/contract beside it, and Node 22.18; older ones need `tsc` first.

import { openAsBlob } from "node:fs";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { ApiError, Client, JobFailedError } from "./client.ts";
import type { PresetJob } from "./training-worker.ts";

async function train(client: Client, order: string, job: PresetJob, images: string, results: string) {
  if (!(await client.knows(order))) {
    const upload = await client.upload(await openAsBlob(images), images);
    const dataset = { type: "ARCHIVE", archive: `upload:${upload}` };
    const data_loader = { ...job.training?.data_loader, dataset };
    const whole = { ...job, id: order, training: { ...job.training, data_loader } } as PresetJob;
    const { error } = await client.preview(whole);
    if (error) throw new Error(error.message);
    await client.submit(whole);
  }
  for await (const event of client.follow(order)) {
    if (event.kind === "progress") {
      console.log(`${event.stage}: ${event.done} of ${event.total} ${event.unit}`);
    }
  }
  await client.result(order);
  for (const file of await client.files(order)) {
    const path = join(results, file.name);
    await mkdir(dirname(path), { recursive: true });
    await writeFile(path, await client.download(order, file));
    console.log(`downloaded: ${path}`);
  }
}

const [url, order, job, images, results] = process.argv.slice(2) as [string, string, string, string, string];
try {
  const document: PresetJob = JSON.parse(await readFile(job, "utf-8"));
  await train(new Client(url, process.env["KEY"]!), order, document, images, results);
} catch (error) {
  if (error instanceof ApiError) {
    for (const it of error.problems) console.error(`${it.location}: ${it.message}; ${it.remedy}`);
  } else if (error instanceof JobFailedError) console.error(`${error.job.error?.code}: ${error.message}`);
  else throw error;
  process.exitCode = 1;
}
