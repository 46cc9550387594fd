/** A type with every property optional, at any depth. Lists stay whole. */
export type DeepPartial<T> = T extends readonly unknown[]
  ? T
  : T extends object
    ? { [K in keyof T]?: DeepPartial<T[K]> }
    : T;

/** The options of `training`, by its type. */
export type TrainingConfig = TrainingJob["training"];
export type TrainingType = TrainingConfig["type"];

/** A job that takes from a preset all options that it does not set. */
export type PresetJob = Omit<TrainingJob, "preset" | "training"> & {
  preset: PresetName;
  training?: DeepPartial<TrainingConfig>;
};

/** The argument of `training.submit`, which also checks what types cannot express. */
export type JobDocument = TrainingJob | PresetJob;

/** A filled-in form. */
export interface TrainingForm {
  /** Name of the published file. */
  name?: string;
  /** A preset, by name or alias. The form's own values take precedence. */
  preset?: PresetName;
  model: ModelConfig;
  basic: BasicTrainingConfig;
  /** The values that the user changed. Fields without an option in the type are not sent. */
  advanced?: Partial<FluxAdvancedConfig>;
  dataset: TextualInversionSDDataLoaderConfig["dataset"];
  /** Further options. They take precedence over all others. */
  training?: DeepPartial<TrainingConfig>;
}

interface FormTable {
  set: Record<string, string | number>;
  fields: Record<string, { path: string; factor?: number }[]>;
}

interface Part {
  [key: string]: unknown;
}

/** Return the job that a form describes, ready to send. */
export function toTrainingJob(form: TrainingForm): JobDocument {
  const { set, fields } = FORM[form.model.trainingType];
  const training: Part = {};
  for (const [path, value] of Object.entries(set)) put(training, path, value);
  for (const [name, value] of Object.entries({ ...form.model, ...form.basic, ...form.advanced })) {
    for (const { path, factor } of fields[name] ?? []) {
      put(training, path, factor === undefined ? value : Math.ceil((value as number) * factor));
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
