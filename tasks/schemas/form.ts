/** The same with everything left out that a preset says; lists are given as a whole. */
export type DeepPartial<T> = T extends readonly unknown[]
  ? T
  : T extends object
    ? { [K in keyof T]?: DeepPartial<T[K]> }
    : T;

/** What training takes, by its type. */
export type TrainingConfig = TrainingJob["training"];
export type TrainingType = TrainingConfig["type"];

/** A job that leaves to a preset what it does not say. */
export type PresetJob = Omit<TrainingJob, "preset" | "training"> & {
  preset: PresetName;
  training?: DeepPartial<TrainingConfig>;
};

/** What `training.submit` takes. It may still refuse what no type can say, with every fault. */
export type JobDocument = TrainingJob | PresetJob;

/** A filled-in form. */
export interface TrainingForm {
  /** What the published file is called. */
  name?: string;
  /** A preset, by either of its names; what the form says goes before it. */
  preset?: PresetName;
  model: ModelConfig;
  basic: BasicTrainingConfig;
  /** What the form's author changed. Fields that the training type does not have are left out. */
  advanced?: Partial<FluxAdvancedConfig>;
  dataset: TextualInversionSDDataLoaderConfig["dataset"];
  /** Further options, which go before all others. */
  training?: DeepPartial<TrainingConfig>;
}

interface FormTable {
  set: Record<string, string | number>;
  fields: Record<string, { path: string; times?: number }[]>;
}

interface Part {
  [key: string]: unknown;
}

/** The job that a form describes, ready to be sent. */
export function toTrainingJob(form: TrainingForm): JobDocument {
  const { set, fields } = FORM[form.model.trainingType];
  const training: Part = {};
  for (const [path, value] of Object.entries(set)) put(training, path, value);
  for (const [name, value] of Object.entries({ ...form.model, ...form.basic, ...form.advanced })) {
    for (const { path, times } of fields[name] ?? []) {
      put(training, path, times === undefined ? value : Math.ceil((value as number) * times));
    }
  }
  put(training, "data_loader.dataset", form.dataset);
  const job: Part = { training: merged(training, (form.training ?? {}) as Part) };
  if (form.name !== undefined) job.name = form.name;
  if (form.preset !== undefined) job.preset = form.preset;
  return job as unknown as JobDocument;
}

function put(part: Part, path: string, value: unknown): void {
  const folders = path.split(".");
  const last = folders.pop() as string;
  let inner = part;
  for (const folder of folders) inner = (inner[folder] ??= {}) as Part;
  inner[last] = value;
}

function merged(base: Part, over: Part): Part {
  const all: Part = { ...base };
  for (const [key, value] of Object.entries(over)) {
    const both = isPart(all[key]) && isPart(value);
    all[key] = both ? merged(all[key] as Part, value as Part) : value;
  }
  return all;
}

function isPart(value: unknown): value is Part {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
