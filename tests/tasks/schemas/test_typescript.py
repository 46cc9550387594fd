import json
from typing import Any

import pytest

from tasks.jobs.job import parse_job
from tasks.schemas.typescript import typescript_file
from tests.node_tools import NodeFolder
from tests.tasks.schemas.test_form import DATASET, VALUES, filled_in

USE = """
import {
  ERROR_CODES, MEMORY_PRESETS, toTrainingJob,
  type JobEvent, type Manifest, type MemoryPresets, type PresetJob, type RaisedError,
  type SubmitResult, type TrainingForm, type TrainingJob, type Webhook,
} from "./training-worker.ts";

const form: TrainingForm = {
  name: "my-cat",
  preset: "flux_1x40gb",
  model: { trainingType: "FLUX_LORA", baseModel: "some/model" },
  basic: {
    resolution: 1024, batchSize: MEMORY_PRESETS["flux_1x40gb"].batchSize, maxTrainSteps: 1001,
    learningRate: 3e-5, loraRank: 16,
  },
  advanced: { lrScheduler: "cosine", timestepSampler: "shift", cacheVaeOutputs: true },
  dataset: { type: "IMAGE_CAPTION_DIR_DATASET", dataset_dir: "/images" },
  training: { optimizer: { optimizer_type: "AdamW", weight_decay: 0.5 } },
};
console.log(JSON.stringify(toTrainingJob(form)));

// The form's interfaces of the integration plan.
const kept: {
  batchSize: 1; gradientAccumulation: 4; weightDtype: "bfloat16"; gradientCheckpointing: true;
  cacheVaeOutputs: true;
} = MEMORY_PRESETS["flux_1x24gb"];
const whole: TrainingJob = {
  training: {
    type: "FLUX_LORA",
    max_train_steps: 5,
    save_every_n_steps: 1,
    data_loader: {
      type: "IMAGE_CAPTION_FLUX_DATA_LOADER", dataset: { type: "ARCHIVE", archive: "a.zip" },
    },
  },
};
const partly: PresetJob = {
  preset: "flux_lora_1x40gb", training: { data_loader: { dataset: { dataset_dir: "/images" } } },
};
export function shown(event: JobEvent): string {
  switch (event.kind) {
    case "progress": return `${event.done}/${event.total} ${event.loss ?? ""}`;
    case "ended": return event.code === null ? event.status : ERROR_CODES[event.code];
    case "checkpoint": return event.weights.name;
    default: return event.kind;
  }
}
export function read(e: RaisedError, result: SubmitResult, hook: Webhook, manifest: Manifest) {
  const [message, code] = e;
  return [message, ERROR_CODES[code], "files" in result ? result.files[0] : result.job_id,
    hook.type === "job.succeeded" ? hook.data.result?.sha256 : hook.data.sequence,
    manifest.job.training.type, kept, whole, partly];
}
"""
WRONG = """
import { type JobEvent, type TrainingForm, type TrainingJob } from "./training-worker.ts";
export function misspelt(form: TrainingForm, job: TrainingJob, event: JobEvent) {
  // @ts-expect-error there is no such scheduler
  form.advanced = { lrScheduler: "cosinus" };
  // @ts-expect-error there is no such option
  job.training.lora_rnak_dim;
  // @ts-expect-error only progress has it
  return event.done;
}
"""


@pytest.mark.timeout(240)
def test_the_types_compile_and_build_jobs(node: NodeFolder) -> None:
    (node.path / "training-worker.ts").write_text(typescript_file())
    (node.path / "use.ts").write_text(USE)
    (node.path / "wrong.ts").write_text(WRONG)
    node.compile("use.ts", "wrong.ts")
    made: dict[str, Any] = json.loads(node.run("node", "use.js"))

    names = ("baseModel", "maxTrainSteps", "learningRate", "loraRank", "lrScheduler")
    values = {name: VALUES[name] for name in (*names, "timestepSampler", "cacheVaeOutputs")}
    training = filled_in("FLUX_LORA", {**values, "resolution": 1024, "batchSize": 2})
    training["optimizer"] |= {"optimizer_type": "AdamW", "weight_decay": 0.5}
    assert training["data_loader"]["dataset"] == DATASET
    assert made == {"name": "my-cat", "preset": "flux_1x40gb", "training": training}
    assert parse_job(made).training.gradient_accumulation_steps == 2
