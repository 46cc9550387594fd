// Client of the console's HTTP API, made to be copied with training-worker.ts beside it. It needs
// `fetch` only: Node 18, Deno, Bun, or a browser (behind your backend, which keeps the key).
//
//   const client = new Client("http://127.0.0.1:8080", "twk_...");
//   const upload = await client.upload(await openAsBlob("images.zip"), "images.zip");
//   const job = await client.submit({ preset: ..., training: { ...`upload:${upload}` } });
//   for await (const event of client.follow(job.id)) console.log(event);
//   for (const file of await client.files(job.id)) await client.download(job.id, file);
//
// Every call repeats what may succeed soon, and resumes what was interrupted. What the console
// refuses is an ApiError. The console may add fields and kinds of events: ignore unknown ones.

import type { JobDocument, JobEvent, JobStatus } from "./training-worker.ts";

export interface Job {
  id: string;
  name: string;
  status: JobStatus;
  stage: string;
  waiting_reason: string | null;
  estimated_end_at: string | null;
  error: { code: string; stage: string | null; message: string } | null;
  result: { files: string[]; sha256: string | null } | null;
}

export interface JobEdit {
  title?: string | null;
  notes?: string | null;
  labels?: Record<string, string> | null;
}

export interface Preview {
  warnings: string[];
  waiting_reason: string | null;
  route: { queue: string; memory_class: string; needed_gib: number };
  estimate: { total_s: number | null; at_least_s: number };
  error: { code: string; message: string } | null;
}

export interface PublishedFile {
  name: string;
  size: number;
  sha256: string;
}

export interface Problem {
  code: string;
  location: string;
  message: string;
  remedy: string;
  retryable: boolean;
}

/** The console refused a request. */
export class ApiError extends Error {
  readonly status: number;
  /** Why, for programs: `invalid_job`, `not_found`, ... */
  readonly code: string;
  readonly problems: Problem[];
  /** Whether the same request may succeed later. */
  readonly retryable: boolean;
  readonly retryAfterMs: number | null;

  constructor(
    status: number,
    code: string,
    message: string,
    problems: Problem[],
    retryable: boolean,
    retryAfterMs: number | null,
  ) {
    super(message);
    this.name = "ApiError";
    this.status = status;
    this.code = code;
    this.problems = problems;
    this.retryable = retryable;
    this.retryAfterMs = retryAfterMs;
  }
}

/** A job failed or was cancelled. */
export class JobFailedError extends Error {
  readonly job: Job;

  constructor(job: Job) {
    super(job.error?.message ?? `job ${job.id} is ${job.status}`);
    this.name = "JobFailedError";
    this.job = job;
  }
}

const TUS = { "Tus-Resumable": "1.0.0" };
const CHUNK_BYTES = 8 << 20;
const MAX_PAUSE_MS = 30_000;
// A quota is renewed next month: longer delays than this are the caller's to wait for.
const MAX_RETRY_AFTER_MS = 120_000;
// What proxies answer while the console restarts.
const RETRYABLE_STATUSES = [429, 502, 503, 504];

export class Client {
  readonly #url: string;
  readonly #key: string;
  readonly #maxTries: number;

  constructor(url: string, key: string, maxTries = 8) {
    this.#url = `${url.replace(/\/+$/, "")}/v1`;
    this.#key = key;
    this.#maxTries = maxTries;
  }

  /** What would happen to a job, without submitting it. */
  preview(job: JobDocument): Promise<Preview> {
    return this.#json("POST", "/jobs:preview", job);
  }

  /**
   * Submits a job. The same `id`, or `idempotencyKey` of a job without one, again is the same job:
   * an order's number, for example. Without either, only this call's repetitions are.
   */
  submit(job: JobDocument, idempotencyKey?: string): Promise<Job> {
    const key = idempotencyKey ?? (job.id ? undefined : crypto.randomUUID());
    return this.#json("POST", "/jobs", job, key ? { "Idempotency-Key": key } : {});
  }

  /** Whether there is a job of this id. */
  async knows(jobId: string): Promise<boolean> {
    return this.job(jobId).then(
      () => true,
      (error: unknown) => {
        if (error instanceof ApiError && error.status === 404) return false;
        throw error;
      },
    );
  }

  job(jobId: string): Promise<Job> {
    return this.#json("GET", `/jobs/${encodeURIComponent(jobId)}`);
  }

  /** Cancels a job; with `save`, saves a checkpoint first and publishes it. */
  cancel(jobId: string, save = false): Promise<Job> {
    return this.#json("POST", `/jobs/${encodeURIComponent(jobId)}:cancel?save=${save}`);
  }

  pause(jobId: string): Promise<Job> {
    return this.#json("POST", `/jobs/${encodeURIComponent(jobId)}:pause`);
  }

  resume(jobId: string): Promise<Job> {
    return this.#json("POST", `/jobs/${encodeURIComponent(jobId)}:resume`);
  }

  /** Changes what is given of a job's title, notes and labels; null or empty removes it. */
  edit(jobId: string, changes: JobEdit): Promise<Job> {
    return this.#json("PATCH", `/jobs/${encodeURIComponent(jobId)}`, changes);
  }

  /** Deletes a job that has ended, with its results; the files may be removed a while later. */
  async delete(jobId: string): Promise<void> {
    await this.#retry(() => this.#send("DELETE", `/jobs/${encodeURIComponent(jobId)}`, {}));
  }

  /** The events of a job until it ends, across interruptions; `after` is an event's `id`. */
  async *follow(jobId: string, after = "0"): AsyncGenerator<JobEvent & { id: string }> {
    const path = `/jobs/${encodeURIComponent(jobId)}/events`;
    for (let tries = 0; ; ) {
      try {
        const response = await this.#send("GET", path, { "Last-Event-ID": after });
        if (response.status === 204) return;
        for await (const event of eventsOf(response)) {
          [after, tries] = [event.id, 0];
          yield event;
          if (event.kind === "ended") return;
        }
        throw new TypeError("the stream of events was interrupted");
      } catch (error) {
        tries = await this.#pauseBeforeRetry(error, tries);
      }
    }
  }

  /** Waits for a job's end; throws JobFailedError if it failed or was cancelled. */
  async result(jobId: string): Promise<Job> {
    for await (const _ of this.follow(jobId));
    const job = await this.job(jobId);
    if (job.status !== "succeeded") throw new JobFailedError(job);
    return job;
  }

  /** The published files, the trained weights first. */
  async files(jobId: string): Promise<PublishedFile[]> {
    const path = `/jobs/${encodeURIComponent(jobId)}/files`;
    return (await this.#json<{ files: PublishedFile[] }>("GET", path)).files;
  }

  /** The bytes of a file, across interruptions, compared with its digest. */
  async download(jobId: string, file: PublishedFile): Promise<Uint8Array<ArrayBuffer>> {
    const name = file.name.split("/").map(encodeURIComponent).join("/");
    const path = `/jobs/${encodeURIComponent(jobId)}/files/${name}`;
    const bytes = new Uint8Array(file.size);
    let offset = 0;
    for (let tries = 0; offset < file.size; ) {
      try {
        const range = { Range: `bytes=${offset}-`, "If-Range": `"${file.sha256}"` };
        const response = await this.#send("GET", path, offset ? range : {});
        if (response.status !== 206) offset = 0;
        const before = offset;
        for await (const chunk of chunksOf(response)) {
          bytes.set(chunk, offset);
          offset += chunk.length;
          tries = 0;
        }
        if (offset === before) throw new TypeError(`no byte of ${file.name} arrived`);
      } catch (error) {
        tries = await this.#pauseBeforeRetry(error, tries);
      }
    }
    const digest = hex(new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)));
    if (digest !== file.sha256) {
      throw new Error(`${file.name}: SHA-256 ${digest} differs from the manifest's`);
    }
    return bytes;
  }

  /** Uploads an archive of images, or resumes an upload; a job names it as `upload:ID`. */
  async upload(archive: Blob, name: string, uploadId?: string): Promise<string> {
    const id = uploadId ?? (await this.#retry(() => this.#createUpload(archive.size, name)));
    const path = `/uploads/${encodeURIComponent(id)}`;
    for (let offset = -1, tries = 0; offset < archive.size; ) {
      try {
        // After an error, some bytes may have arrived.
        const response =
          offset < 0
            ? await this.#send("HEAD", path, TUS)
            : await this.#append(path, archive.slice(offset, offset + CHUNK_BYTES), offset);
        offset = Number(response.headers.get("Upload-Offset"));
        tries = 0;
      } catch (error) {
        // 409: the console has not noticed yet that an earlier request is lost.
        const isBusy = error instanceof ApiError && error.status === 409;
        tries = await this.#pauseBeforeRetry(isBusy ? new TypeError(error.message) : error, tries);
        offset = -1;
      }
    }
    return id;
  }

  async #createUpload(size: number, name: string): Promise<string> {
    const headers = {
      ...TUS,
      "Upload-Length": String(size),
      "Upload-Metadata": `filename ${base64(new TextEncoder().encode(name))}`,
    };
    const response = await this.#send("POST", "/uploads", headers);
    return response.headers.get("Location")!.split("/").at(-1)!;
  }

  async #append(path: string, chunk: Blob, offset: number): Promise<Response> {
    const digest = await crypto.subtle.digest("SHA-256", await chunk.arrayBuffer());
    const headers = {
      ...TUS,
      "Content-Type": "application/offset+octet-stream",
      "Upload-Offset": String(offset),
      "Upload-Checksum": `sha256 ${base64(new Uint8Array(digest))}`,
    };
    return this.#send("PATCH", path, headers, chunk);
  }

  #json<T>(
    method: string,
    path: string,
    document?: unknown,
    headers: Record<string, string> = {},
  ): Promise<T> {
    const body = document === undefined ? undefined : JSON.stringify(document);
    const all = { "Content-Type": "application/json", ...headers };
    return this.#retry(async () => (await this.#send(method, path, all, body)).json() as T);
  }

  async #retry<T>(request: () => Promise<T>): Promise<T> {
    for (let tries = 0; ; ) {
      try {
        return await request();
      } catch (error) {
        tries = await this.#pauseBeforeRetry(error, tries);
      }
    }
  }

  /** Waits until a request may succeed; throws an error that is final, or was the last one. */
  async #pauseBeforeRetry(error: unknown, tries: number): Promise<number> {
    // fetch reports a lost connection as TypeError.
    const refused = error instanceof ApiError;
    const retryable = refused ? error.retryable : error instanceof TypeError;
    const askedMs = refused ? error.retryAfterMs : null;
    const isTooLong = askedMs !== null && askedMs > MAX_RETRY_AFTER_MS;
    if (!retryable || isTooLong || tries + 1 >= this.#maxTries) throw error;
    const pauseMs = Math.min(MAX_PAUSE_MS, 500 * 2 ** tries) * (0.5 + Math.random() / 2);
    await new Promise((resolve) => setTimeout(resolve, askedMs ?? pauseMs));
    return tries + 1;
  }

  async #send(
    method: string,
    path: string,
    headers: Record<string, string>,
    body?: BodyInit,
  ): Promise<Response> {
    const response = await fetch(this.#url + path, {
      method,
      headers: { Authorization: `Bearer ${this.#key}`, ...headers },
      body,
      // A redirect would send the key to another address.
      redirect: "manual",
    });
    if (!response.ok) throw await errorOf(response);
    return response;
  }
}

/** The error in a response of the console, or of a proxy before it. */
async function errorOf(response: Response): Promise<ApiError> {
  const seconds = Number(response.headers.get("Retry-After") ?? NaN);
  const retryAfterMs = Number.isFinite(seconds) ? seconds * 1000 : null;
  const { status } = response;
  if (response.headers.get("Content-Type") === "application/problem+json") {
    const it = (await response.json().catch(() => null)) as {
      code: string;
      detail: string;
      retryable: boolean;
      errors: Problem[];
    } | null;
    if (it) return new ApiError(status, it.code, it.detail, it.errors, it.retryable, retryAfterMs);
  }
  const retryable = RETRYABLE_STATUSES.includes(status);
  return new ApiError(status, "http", `HTTP ${status}`, [], retryable, retryAfterMs);
}

/** The events of a stream of server-sent events. */
async function* eventsOf(response: Response): AsyncGenerator<JobEvent & { id: string }> {
  const decoder = new TextDecoder();
  let [text, id] = ["", ""];
  for await (const chunk of chunksOf(response)) {
    const lines = (text + decoder.decode(chunk, { stream: true })).split("\n");
    text = lines.pop()!;
    for (const line of lines) {
      if (line.startsWith("id: ")) id = line.slice(4);
      if (line.startsWith("data: ")) yield { id, ...JSON.parse(line.slice(6)) };
    }
  }
}

async function* chunksOf(response: Response): AsyncGenerator<Uint8Array> {
  const reader = response.body!.getReader();
  try {
    for (let part = await reader.read(); !part.done; part = await reader.read()) yield part.value;
  } finally {
    // Ends the request of a reader that has seen enough.
    await reader.cancel().catch(() => undefined);
  }
}

function base64(bytes: Uint8Array): string {
  return btoa(String.fromCharCode(...bytes));
}

function hex(bytes: Uint8Array): string {
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
