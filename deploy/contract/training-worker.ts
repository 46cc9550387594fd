// Made from the models that do the work by `training-worker contract`; do not edit it.

/** A job's stages, in their order. */
export const STAGES = ["prepare", "cache", "train", "publish"] as const;

export type Stage = (typeof STAGES)[number];

/** What a job's status may be. */
export const STATUSES = {
  "queued": "It waits for its first stage.",
  "running": "It is between its first stage and its end, also where it waits for the next one.",
  "cancelling": "Somebody cancelled it, and what runs of it is about to stop.",
  "pausing": "Somebody paused it, and its trainer is about to save a checkpoint.",
  "paused": "It waits until somebody resumes it.",
  "succeeded": "Its results are published.",
  "failed": "It ended with an error.",
  "cancelled": "Somebody cancelled it; with a result where there was something to save."
} as const;

export type JobStatus = keyof typeof STATUSES;

/** Those after which nothing more happens, unless somebody replays a failed job. */
export const ENDED: readonly JobStatus[] = ["succeeded", "failed", "cancelled"];

/** Why a job failed. */
export const ERROR_CODES = {
  "internal": "A fault of the fleet's own; its operator finds more in the workers' logs.",
  "invalid_job": "The job cannot run as described; the message lists every fault.",
  "invalid_dataset": "The dataset cannot be trained on; the message lists every fault.",
  "invalid_model": "The base model is missing, incomplete or unreadable.",
  "no_broker": "There is no broker, or it does not answer.",
  "no_worker": "No live worker serves the queue that the job needs.",
  "does_not_fit": "No GPU memory class holds the job; the message has the numbers.",
  "trainer_failed": "The trainer stopped without a result; the message holds its last words.",
  "cancelled": "Somebody cancelled the job.",
  "unknown_job": "There is no such job, or its life time is over.",
  "store": "Something could not be read from the store, or written to it.",
  "out_of_memory": "The GPU's memory was full, in the next larger class too.",
  "diverged": "The loss was not finite: the learning rate is too high, say.",
  "superseded": "Another start of the stage has taken over.",
  "not_installed": "A part that the job needs is not installed on the worker.",
  "unreadable_file": "A file cannot be read.",
  "invalid_state": "The job's state does not allow the request.",
  "usage": "A command line was wrong. No job fails with this code."
} as const;

export type ErrorCode = keyof typeof ERROR_CODES;

export type PresetName = "flux_lora_1x24gb" | "flux_lora_1x40gb" | "flux_lora_1x80gb" | "sdxl_finetune_1x40gb" | "sdxl_finetune_1x80gb" | "sdxl_lora_1x16gb" | "sdxl_lora_1x24gb" | "sdxl_textual_inversion_1x16gb" | "flux_1x24gb" | "flux_1x40gb" | "flux_1x80gb";

/** Adafactor (Shazeer & Stern, 2018): hardly any state, for finetunes on small cards. */
export interface AdafactorOptimizerConfig {
  /**
   * Selects this optimizer. invoke-training has no such one.
   * @default "Adafactor"
   */
  optimizer_type: "Adafactor";
  /**
   * The rate where the model's own learning rate is null. It is relative: a step moves a weight
   * matrix by this share of its root mean square, 1 / sqrt(step) at most.
   * @default 0.01
   */
  learning_rate?: number;
  /**
   * The mean of squared gradients decays by 1 - step^beta2_decay.
   * @default -0.8
   */
  beta2_decay?: number;
  /**
   * The greatest root mean square of an update before the rate.
   * @default 1.0
   */
  clipping_threshold?: number;
  /**
   * Decoupled decay of the weights at each step, times the learning rate.
   * @default 0.0
   */
  weight_decay?: number;
}

/** AdamW (Loshchilov & Hutter, 2019). */
export interface AdamOptimizerConfig {
  /**
   * Selects this optimizer.
   * @default "AdamW"
   */
  optimizer_type: "AdamW";
  /**
   * The rate where the model's own learning rate is null.
   * @default 0.0001
   */
  learning_rate?: number;
  /**
   * Decay of the mean of the gradients.
   * @default 0.9
   */
  beta1?: number;
  /**
   * Decay of the mean of their squares.
   * @default 0.999
   */
  beta2?: number;
  /**
   * Decoupled decay of the weights at each step, times the learning rate.
   * @default 0.01
   */
  weight_decay?: number;
  /**
   * Added to the denominator.
   * @default 1e-08
   */
  epsilon?: number;
  /**
   * Keep the optimizer's state in 8 bits (Dettmers et al., 2022), by bitsandbytes. Weights of
   * under 4096 numbers keep theirs in 32.
   * @default false
   */
  use_8bit?: boolean;
}

/** A zip, tar or tar.gz archive: of images with `.txt` captions, or with a JSONL file. */
export interface ArchiveDatasetConfig {
  /**
   * Selects this kind of dataset. invoke-training has none.
   * @default "ARCHIVE"
   */
  type: "ARCHIVE";
  /**
   * The file, as the workers see it, its `https://`, `s3://`, `gs://` or `az://` address,
   * or an upload to the console: `upload:` and its id.
   */
  archive: string;
  /** The archive's SHA-256 in hex; one with another is refused. Null: not checked. */
  sha256?: string | null;
  /**
   * The JSONL file in it that names images and captions; image paths start at its folder. Null:
   * each image has a `.txt` of the same name.
   */
  jsonl?: string | null;
  /**
   * The key of the image's path, with jsonl.
   * @default "image"
   */
  image_column?: string;
  /**
   * The key of the caption, with jsonl.
   * @default "text"
   */
  caption_column?: string;
  /**
   * The key of the mask's path, with jsonl; see IMAGE_CAPTION_JSONL_DATASET.
   * @default "mask"
   */
  mask_column?: string;
  /**
   * Keep decoded images in memory through the run instead of decoding them at each use.
   * @default false
   */
  keep_in_memory?: boolean;
}

/** The set of image sizes a dataset is sorted into. */
export interface AspectRatioBucketConfig {
  /** Each bucket's area comes close to this side's square, in pixels, and never above it. */
  target_resolution: number;
  /** The shortest side stepped through, in pixels. */
  start_dim: number;
  /** The longest side stepped through, in pixels. */
  end_dim: number;
  /** Every side is a multiple of this many pixels. */
  divisible_by: number;
}

/** DreamBooth (Ruiz et al., 2022): images of one thing, and of its class to keep it apart. */
export interface DreamboothSDDataLoaderConfig {
  /**
   * Selects this kind of data loader.
   * @default "DREAMBOOTH_SD_DATA_LOADER"
   */
  type: "DREAMBOOTH_SD_DATA_LOADER";
  /** Sort images into sizes near their own aspect ratio. Null: crop all to `resolution`. */
  aspect_ratio_buckets?: AspectRatioBucketConfig | null;
  /**
   * The size of training images in pixels: a square's side, or (height, width). With buckets,
   * their sizes hold; leave this out then, or make it equal to target_resolution.
   * @default 512
   */
  resolution?: number | [number, number];
  /**
   * Crop at the centre. False: at a place drawn for each sample and step.
   * @default true
   */
  center_crop?: boolean;
  /**
   * Mirror half of the samples, drawn for each sample and step.
   * @default false
   */
  random_flip?: boolean;
  /**
   * Processes that read and decode ahead of the GPU; 0 reads in the training process.
   * @default 0
   */
  dataloader_num_workers?: number;
  /** The caption of every image of instance_dataset. */
  instance_caption: string;
  /** The caption of every image of class_dataset; the two go together. */
  class_caption?: string | null;
  /** Images of the thing. */
  instance_dataset: ImageDirDatasetConfig | ArchiveDatasetConfig;
  /**
   * Images of its class. Whichever set is smaller is repeated until there are as many of both: a
   * pass sees all of both.
   */
  class_dataset?: ImageDirDatasetConfig | ArchiveDatasetConfig | null;
  /**
   * The weight of their loss; that of the instance's images is 1.
   * @default 1.0
   */
  class_data_loss_weight?: number;
}

/** The same for FLUX. */
export interface FluxAspectRatioBucketConfig {
  /** Each bucket's area comes close to this side's square, in pixels, and never above it. */
  target_resolution: number;
  /** The shortest side stepped through, in pixels. */
  start_dim: number;
  /** The longest side stepped through, in pixels. */
  end_dim: number;
  /** Every side is a multiple of this many pixels. */
  divisible_by: number;
}

/** A FLUX.1 LoRA training run. */
export interface FluxLoraConfig {
  /**
   * Selects this training type.
   * @default "FLUX_LORA"
   */
  type: "FLUX_LORA";
  /** Decides every random draw of the run. Null: one is drawn at submit and recorded. */
  seed?: number | null;
  /** A folder inside the store under which the results are published. Null: `outputs`. */
  base_output_dir?: string | null;
  /**
   * Where metrics go beside the job's events: a TensorBoard file among the results. The other
   * values would need secrets on the workers: refused.
   * @default "tensorboard"
   */
  report_to?: "all" | "tensorboard" | "wandb" | "comet_ml";
  /** Weight updates to make. Exactly one of this and max_train_epochs. */
  max_train_steps?: number | null;
  /** Passes over the dataset to make. Exactly one of this and max_train_steps. */
  max_train_epochs?: number | null;
  /** Keep a checkpoint after every n passes. Exactly one of this and save_every_n_steps. */
  save_every_n_epochs?: number | null;
  /** Keep a checkpoint after every n updates. Exactly one of this and save_every_n_epochs. */
  save_every_n_steps?: number | null;
  /**
   * Make validation images after every n passes. With validation_prompts, exactly one of this
   * and validate_every_n_steps; without prompts at most one, and there is nothing to make.
   */
  validate_every_n_epochs?: number | null;
  /**
   * Make validation images after every n updates. With validation_prompts, exactly one of this
   * and validate_every_n_epochs; without prompts at most one, and there is nothing to make.
   */
  validate_every_n_steps?: number | null;
  /**
   * The base model: a diffusers folder, as the workers see it, a Hub id, or one
   * `.safetensors` file that holds the whole model.
   * @default "black-forest-labs/FLUX.1-dev"
   */
  model?: string;
  /**
   * Where `model` is a single file: the diffusers folder or Hub id whose configs and
   * tokenizers describe it. Null: the type's default model.
   */
  single_file_config?: string | null;
  /**
   * The optimizer and its settings.
   * @default {
   *   "optimizer_type": "AdamW",
   *   "learning_rate": 0.0001,
   *   "beta1": 0.9,
   *   "beta2": 0.999,
   *   "weight_decay": 0.01,
   *   "epsilon": 1e-08,
   *   "use_8bit": false
   * }
   */
  optimizer?: AdamOptimizerConfig | ProdigyOptimizerConfig | AdafactorOptimizerConfig;
  /**
   * How the learning rate moves over the run.
   * @default "constant_with_warmup"
   */
  lr_scheduler?: "linear" | "cosine" | "cosine_with_restarts" | "polynomial" | "constant" | "constant_with_warmup";
  /**
   * Updates over which the rate rises from 0; every scheduler but `constant` takes it.
   * @default 10
   */
  lr_warmup_steps?: number;
  /**
   * Encode images once, ahead of training, and share the latents with every later job. False
   * keeps the VAE on the GPU and encodes at each step. Needs center_crop.
   * @default false
   */
  cache_vae_outputs?: boolean;
  /**
   * Keep on the GPU only the model in use while making validation images. Slower, and takes
   * less memory; it acts with validation_prompts.
   * @default false
   */
  enable_cpu_offload_during_validation?: boolean;
  /**
   * Batches whose gradients make one weight update.
   * @default 1
   */
  gradient_accumulation_steps?: number;
  /**
   * The precision of the frozen weights. LoRA weights and their optimizer state are always
   * float32; float16 trains with a dynamic loss scale, so that gradients do not vanish.
   * @default "float16"
   */
  weight_dtype?: "float32" | "float16" | "bfloat16";
  /**
   * The precision of the computation; `no` takes weight_dtype's. `fp8` would need
   * TransformerEngine: refused.
   * @default "no"
   */
  mixed_precision?: "no" | "fp16" | "bf16" | "fp8";
  /**
   * Recompute each block in the backward pass: far less memory, about 20 % slower.
   * @default false
   */
  gradient_checkpointing?: boolean;
  /**
   * How many checkpoints to keep, newest last. Null keeps all. An old one is removed only once
   * the new one is recorded.
   */
  max_checkpoints?: number | null;
  /** Clip the gradients' norm to this. Null: no clipping. */
  max_grad_norm?: number | null;
  /**
   * Prompts to make images from through the run, as they stand: without caption_prefix. The
   * images have the training resolution and are published in `validation/`.
   * @default []
   */
  validation_prompts?: (string)[];
  /**
   * Images for each of validation_prompts. The noise they start from is decided by seed, prompt
   * and number, so that the images of different steps compare.
   * @default 4
   */
  num_validation_images_per_prompt?: number;
  /**
   * Samples of one forward pass.
   * @default 1
   */
  train_batch_size?: number;
  /**
   * Weight the loss by the dataset's masks, in latent space: white counts fully, black not at
   * all. Images without a mask count fully. Only JSONL datasets hold masks.
   * @default false
   */
  use_masks?: boolean;
  /** A `.safetensors` file whose transformer replaces the base model's. */
  transformer_path?: string | null;
  /** A `.safetensors` file whose CLIP text encoder replaces the base model's. */
  text_encoder_1_path?: string | null;
  /** A `.safetensors` file whose T5 text encoder replaces the base model's. */
  text_encoder_2_path?: string | null;
  /**
   * Keep the frozen transformer's linear layers in 8 bits (`fp8`, `int8`, by torchao) or 4
   * (`nf4`, by bitsandbytes) and compute in weight_dtype's precision: half or a quarter of its
   * memory. Null: as they are. invoke-training has no such option.
   */
  quantization?: "fp8" | "int8" | "nf4" | null;
  /**
   * How the LoRA is written. Both forms hold the same weights; InvokeAI, ComfyUI and diffusers
   * read both.
   * @default "kohya"
   */
  lora_checkpoint_format?: "invoke_peft" | "kohya";
  /**
   * Put LoRA layers on the transformer.
   * @default true
   */
  train_transformer?: boolean;
  /**
   * Put LoRA layers on the CLIP text encoder; T5 is never trained. Needs
   * cache_text_encoder_outputs false.
   * @default false
   */
  train_text_encoder?: boolean;
  /**
   * The text encoder's learning rate; it acts with train_text_encoder. It overrides
   * optimizer.learning_rate; null leaves that, and so does leaving it out with Prodigy or
   * Adafactor.
   * @default 0.0001
   */
  text_encoder_learning_rate?: number | null;
  /**
   * The transformer's learning rate. It overrides optimizer.learning_rate; null leaves that.
   * Left out with Prodigy or Adafactor it is null, not 4e-4: their rates are relative, and
   * invoke-training, where the default overrides Prodigy's, trains 2500 times too slowly. A value
   * that is given overrides theirs as well.
   * @default 0.0004
   */
  transformer_learning_rate?: number | null;
  /**
   * Weight each sample's loss by min(snr, gamma) / (snr + 1), snr = ((1 - sigma) / sigma)^2:
   * Min-SNR (Hang et al., 2023) in its v-prediction form, the one whose target is a velocity as
   * flow matching's is. Null: no weighting.
   */
  min_snr_gamma?: number | null;
  /**
   * The rank of the LoRA matrices.
   * @default 4
   */
  lora_rank_dim?: number;
  /**
   * The block layers that get a LoRA, each by the end of its name. invoke-training's own list
   * holds three names that match nothing in FLUX: `ff.net.2.0` and `ff_context.net.2.0` are
   * read as `ff.net.2` and `ff_context.net.2`, `proj_in` is passed over. The model's last
   * layer, also called `proj_out`, never gets one.
   * @default [
   *   "attn.add_k_proj",
   *   "attn.add_q_proj",
   *   "attn.add_v_proj",
   *   "attn.to_add_out",
   *   "attn.to_k",
   *   "attn.to_q",
   *   "attn.to_v",
   *   "attn.to_out.0",
   *   "ff.net.0.proj",
   *   "ff.net.2.0",
   *   "ff_context.net.0.proj",
   *   "ff_context.net.2.0",
   *   "attn.to_k",
   *   "attn.to_q",
   *   "attn.to_v",
   *   "proj_mlp",
   *   "proj_out",
   *   "proj_in"
   * ]
   */
  flux_lora_target_modules?: (string)[];
  /**
   * The text encoder's layers that get a LoRA; it acts with train_text_encoder.
   * @default ["fc1", "fc2", "q_proj", "k_proj", "v_proj", "out_proj"]
   */
  text_encoder_lora_target_modules?: (string)[];
  /**
   * Encode captions once, ahead of training, and share the outputs with every later job. False
   * keeps both text encoders on the GPU and encodes at each step.
   * @default false
   */
  cache_text_encoder_outputs?: boolean;
  /** FLUX predicts the flow's velocity and nothing else: only null is accepted. */
  prediction_type?: "epsilon" | "v_prediction" | null;
  /** The dataset, and how it becomes samples. */
  data_loader: ImageCaptionFluxDataLoaderConfig;
  /**
   * How noise levels are drawn: `shift` draws sigmoid(sigmoid_scale * N(0, 1)) and shifts it
   * towards noise by discrete_flow_shift, `uniform` draws evenly, `resolution_shift` (not in
   * invoke-training) shifts by what FLUX samples such a size with: exp(0.5) at 256 patches (256 x
   * 256 pixels) to exp(1.15) at 4096 (1024 x 1024), the exponent linear in the patches.
   * @default "shift"
   */
  timestep_sampler?: "shift" | "uniform" | "resolution_shift";
  /**
   * `shift` maps t to shift * t / (1 + (shift - 1) * t); 1 leaves it.
   * @default 3.0
   */
  discrete_flow_shift?: number;
  /**
   * The spread of the normal draw before the sigmoid.
   * @default 1.0
   */
  sigmoid_scale?: number;
  /**
   * The strength of the LoRA, alpha / rank, while training and in the file. Null: 1.
   * @default 1.0
   */
  lora_scale?: number | null;
  /**
   * The guidance that a guidance-distilled transformer (FLUX.1-dev) is trained under; others
   * have no such input.
   * @default 1.0
   */
  guidance_scale?: number;
  /**
   * Tokens of a caption that CLIP sees; its position table ends at 77.
   * @default 77
   */
  clip_tokenizer_max_length?: number;
  /**
   * Tokens of a caption that T5 sees; FLUX was trained with 512.
   * @default 512
   */
  t5_tokenizer_max_length?: number;
}

/** A dataset on the Hugging Face Hub, read from its parquet files; its code is never run. */
export interface HFHubImageCaptionDatasetConfig {
  /**
   * Selects this kind of dataset.
   * @default "HF_HUB_IMAGE_CAPTION_DATASET"
   */
  type: "HF_HUB_IMAGE_CAPTION_DATASET";
  /** The dataset's repository. */
  dataset_name: string;
  /** Its configuration, where it has several. */
  dataset_config_name?: string | null;
  /** Where downloads are kept. Null: the Hub's own cache folder. */
  hf_cache_dir?: string | null;
  /**
   * The column of the images.
   * @default "image"
   */
  image_column?: string;
  /**
   * The column of the captions.
   * @default "text"
   */
  caption_column?: string;
}

/** A folder of images, each with a `.txt` caption of the same name. */
export interface ImageCaptionDirDatasetConfig {
  /**
   * Selects this kind of dataset.
   * @default "IMAGE_CAPTION_DIR_DATASET"
   */
  type: "IMAGE_CAPTION_DIR_DATASET";
  /**
   * The folder, as the workers see it, or `s3://`, `gs://` or `az://` with bucket and
   * prefix.
   */
  dataset_dir: string;
  /**
   * Keep decoded images in memory through the run instead of decoding them at each use.
   * @default false
   */
  keep_in_memory?: boolean;
}

/** How images and captions become FLUX training samples. */
export interface ImageCaptionFluxDataLoaderConfig {
  /**
   * The only data loader that FLUX takes.
   * @default "IMAGE_CAPTION_FLUX_DATA_LOADER"
   */
  type?: "IMAGE_CAPTION_FLUX_DATA_LOADER";
  /** Sort images into sizes near their own aspect ratio. Null: crop all to `resolution`. */
  aspect_ratio_buckets?: FluxAspectRatioBucketConfig | null;
  /**
   * The size of training images in pixels: a square's side, or (height, width). With buckets,
   * their sizes hold; leave this out then, or make it equal to target_resolution.
   * @default 512
   */
  resolution?: number | [number, number];
  /**
   * Crop at the centre. False: at a place drawn for each sample and step.
   * @default true
   */
  center_crop?: boolean;
  /**
   * Mirror half of the samples, drawn for each sample and step.
   * @default false
   */
  random_flip?: boolean;
  /**
   * Processes that read and decode ahead of the GPU; 0 reads in the training process.
   * @default 0
   */
  dataloader_num_workers?: number;
  /** Where the images and captions are. */
  dataset: ImageCaptionDirDatasetConfig | ImageCaptionJsonlDatasetConfig | HFHubImageCaptionDatasetConfig | ArchiveDatasetConfig;
  /** Put before every caption, with a space between. */
  caption_prefix?: string | null;
  /**
   * The share of samples trained under the blank caption, drawn for each sample and pass, so
   * that the model keeps what classifier-free guidance needs. invoke-training has none.
   * @default 0.0
   */
  caption_dropout?: number;
}

/** A JSONL file: one object a line, naming an image and its caption. */
export interface ImageCaptionJsonlDatasetConfig {
  /**
   * Selects this kind of dataset.
   * @default "IMAGE_CAPTION_JSONL_DATASET"
   */
  type: "IMAGE_CAPTION_JSONL_DATASET";
  /**
   * The file, as the workers see it, or its `https://`, `s3://`, `gs://` or `az://`
   * address. Image paths are relative and stay below its folder.
   */
  jsonl_path: string;
  /**
   * The key of the image's path.
   * @default "image"
   */
  image_column?: string;
  /**
   * The key of the caption.
   * @default "text"
   */
  caption_column?: string;
  /**
   * The key of the mask's path: a grey image of the image's size, white where the loss counts
   * fully. Rows may lack it. Read with use_masks only; invoke-training has this name fixed.
   * @default "mask"
   */
  mask_column?: string;
  /**
   * Keep decoded images in memory through the run instead of decoding them at each use.
   * @default false
   */
  keep_in_memory?: boolean;
}

/** How images and captions become SDXL training samples. */
export interface ImageCaptionSDDataLoaderConfig {
  /**
   * Selects this kind of data loader.
   * @default "IMAGE_CAPTION_SD_DATA_LOADER"
   */
  type: "IMAGE_CAPTION_SD_DATA_LOADER";
  /** Sort images into sizes near their own aspect ratio. Null: crop all to `resolution`. */
  aspect_ratio_buckets?: AspectRatioBucketConfig | null;
  /**
   * The size of training images in pixels: a square's side, or (height, width). With buckets,
   * their sizes hold; leave this out then, or make it equal to target_resolution.
   * @default 512
   */
  resolution?: number | [number, number];
  /**
   * Crop at the centre. False: at a place drawn for each sample and step.
   * @default true
   */
  center_crop?: boolean;
  /**
   * Mirror half of the samples, drawn for each sample and step.
   * @default false
   */
  random_flip?: boolean;
  /**
   * Processes that read and decode ahead of the GPU; 0 reads in the training process.
   * @default 0
   */
  dataloader_num_workers?: number;
  /** Where the images and captions are. */
  dataset: ImageCaptionDirDatasetConfig | ImageCaptionJsonlDatasetConfig | HFHubImageCaptionDatasetConfig | ArchiveDatasetConfig;
  /** Put before every caption, with a space between. */
  caption_prefix?: string | null;
  /**
   * The share of samples trained under the blank caption, drawn for each sample and pass, so
   * that the model keeps what classifier-free guidance needs. invoke-training has none.
   * @default 0.0
   */
  caption_dropout?: number;
}

/** A folder of images without captions. */
export interface ImageDirDatasetConfig {
  /**
   * Selects this kind of dataset.
   * @default "IMAGE_DIR_DATASET"
   */
  type: "IMAGE_DIR_DATASET";
  /**
   * The folder, as the workers see it, or `s3://`, `gs://` or `az://` with bucket and
   * prefix.
   */
  dataset_dir: string;
  /**
   * Keep decoded images in memory through the run instead of decoding them at each use.
   * @default false
   */
  keep_in_memory?: boolean;
}

/** Prodigy (Mishchenko & Defazio, 2023), which finds its own step size. */
export interface ProdigyOptimizerConfig {
  /**
   * Selects this optimizer.
   * @default "Prodigy"
   */
  optimizer_type: "Prodigy";
  /**
   * A factor on the step size that Prodigy finds, where the model's own learning rate is null
   * or left out. Prodigy does not make up for it: far below 1, it hardly trains.
   * @default 1.0
   */
  learning_rate?: number;
  /**
   * Decoupled decay of the weights at each step, times the rate that Prodigy found.
   * @default 0.0
   */
  weight_decay?: number;
  /**
   * Adam's bias correction.
   * @default false
   */
  use_bias_correction?: boolean;
  /**
   * Keep the low rates of the warmup steps out of the step-size estimate.
   * @default false
   */
  safeguard_warmup?: boolean;
}

/** An SDXL finetune: every weight of the UNet. */
export interface SdxlFinetuneConfig {
  /**
   * Selects this training type.
   * @default "SDXL_FINETUNE"
   */
  type: "SDXL_FINETUNE";
  /** Decides every random draw of the run. Null: one is drawn at submit and recorded. */
  seed?: number | null;
  /** A folder inside the store under which the results are published. Null: `outputs`. */
  base_output_dir?: string | null;
  /**
   * Where metrics go beside the job's events: a TensorBoard file among the results. The other
   * values would need secrets on the workers: refused.
   * @default "tensorboard"
   */
  report_to?: "all" | "tensorboard" | "wandb" | "comet_ml";
  /** Weight updates to make. Exactly one of this and max_train_epochs. */
  max_train_steps?: number | null;
  /** Passes over the dataset to make. Exactly one of this and max_train_steps. */
  max_train_epochs?: number | null;
  /** Keep a checkpoint after every n passes. Exactly one of this and save_every_n_steps. */
  save_every_n_epochs?: number | null;
  /** Keep a checkpoint after every n updates. Exactly one of this and save_every_n_epochs. */
  save_every_n_steps?: number | null;
  /**
   * Make validation images after every n passes. With validation_prompts, exactly one of this
   * and validate_every_n_steps; without prompts at most one, and there is nothing to make.
   */
  validate_every_n_epochs?: number | null;
  /**
   * Make validation images after every n updates. With validation_prompts, exactly one of this
   * and validate_every_n_epochs; without prompts at most one, and there is nothing to make.
   */
  validate_every_n_steps?: number | null;
  /**
   * The base model: a diffusers folder, as the workers see it, a Hub id, or one
   * `.safetensors` file that holds the whole model.
   * @default "stabilityai/stable-diffusion-xl-base-1.0"
   */
  model?: string;
  /**
   * Where `model` is a single file: the diffusers folder or Hub id whose configs and
   * tokenizers describe it. Null: the type's default model.
   */
  single_file_config?: string | null;
  /**
   * The optimizer and its settings.
   * @default {
   *   "optimizer_type": "AdamW",
   *   "learning_rate": 0.0001,
   *   "beta1": 0.9,
   *   "beta2": 0.999,
   *   "weight_decay": 0.01,
   *   "epsilon": 1e-08,
   *   "use_8bit": false
   * }
   */
  optimizer?: AdamOptimizerConfig | ProdigyOptimizerConfig | AdafactorOptimizerConfig;
  /**
   * How the learning rate moves over the run.
   * @default "constant"
   */
  lr_scheduler?: "linear" | "cosine" | "cosine_with_restarts" | "polynomial" | "constant" | "constant_with_warmup";
  /**
   * Updates over which the rate rises from 0; every scheduler but `constant` takes it.
   * @default 0
   */
  lr_warmup_steps?: number;
  /**
   * Encode images once, ahead of training, and share the latents with every later job. False
   * keeps the VAE on the GPU and encodes at each step. Needs center_crop.
   * @default false
   */
  cache_vae_outputs?: boolean;
  /**
   * Keep on the GPU only the model in use while making validation images. Slower, and takes
   * less memory; it acts with validation_prompts.
   * @default false
   */
  enable_cpu_offload_during_validation?: boolean;
  /**
   * Batches whose gradients make one weight update.
   * @default 1
   */
  gradient_accumulation_steps?: number;
  /**
   * The precision of the frozen weights. Trained weights and their optimizer state are always
   * float32; float16 trains with a dynamic loss scale, so that gradients do not vanish.
   * @default "bfloat16"
   */
  weight_dtype?: "float32" | "float16" | "bfloat16";
  /**
   * The precision of the computation; `no` takes weight_dtype's. `fp8` would need
   * TransformerEngine: refused.
   * @default "no"
   */
  mixed_precision?: "no" | "fp16" | "bf16" | "fp8";
  /**
   * Recompute each block in the backward pass: far less memory, about 20 % slower.
   * @default false
   */
  gradient_checkpointing?: boolean;
  /**
   * How many checkpoints to keep, newest last. Null keeps all. An old one is removed only once
   * the new one is recorded.
   */
  max_checkpoints?: number | null;
  /** Clip the gradients' norm to this. Null: no clipping. */
  max_grad_norm?: number | null;
  /**
   * Prompts to make images from through the run, as they stand: without caption_prefix. The
   * images have the training resolution and are published in `validation/`.
   * @default []
   */
  validation_prompts?: (string)[];
  /**
   * Images for each of validation_prompts. The noise they start from is decided by seed, prompt
   * and number, so that the images of different steps compare.
   * @default 4
   */
  num_validation_images_per_prompt?: number;
  /**
   * Samples of one forward pass.
   * @default 4
   */
  train_batch_size?: number;
  /**
   * Weight the loss by the dataset's masks, in latent space: white counts fully, black not at
   * all. Images without a mask count fully. Only JSONL datasets hold masks.
   * @default false
   */
  use_masks?: boolean;
  /**
   * The variant of a Hub repository's files to fetch (`fp16` is half the download); weights
   * without that variant are taken where there is none. For folders the same.
   * @default "fp16"
   */
  hf_variant?: string | null;
  /**
   * A diffusers folder or Hub id of a VAE to use instead of the base model's. The published
   * file does not hold it, but full_diffusers and single_file do.
   */
  vae_model?: string | null;
  /**
   * What the UNet predicts: the noise, or the velocity (Salimans & Ho, 2022). Null: what the
   * base model's scheduler says.
   */
  prediction_type?: "epsilon" | "v_prediction" | null;
  /**
   * Weight each sample's loss by min(snr, gamma) / snr, and with v-prediction by
   * min(snr, gamma) / (snr + 1): Min-SNR (Hang et al., 2023). Null: no weighting.
   * @default 5.0
   */
  min_snr_gamma?: number | null;
  /**
   * PyTorch's own attention is as fast and exact to repeat: true is refused.
   * @default false
   */
  xformers?: boolean;
  /** What each validation image should not show: one for each of validation_prompts. */
  negative_validation_prompts?: (string)[] | null;
  /**
   * What is published: the whole pipeline as a diffusers folder, the UNet's part of it alone, or
   * the whole pipeline in one `.safetensors` file as InvokeAI and ComfyUI load it (not in
   * invoke-training).
   * @default "trained_only_diffusers"
   */
  save_checkpoint_format?: "full_diffusers" | "trained_only_diffusers" | "single_file";
  /**
   * The precision of the published weights.
   * @default "float16"
   */
  save_dtype?: "float32" | "float16" | "bfloat16";
  /**
   * Publish a moving average of the weights (EMA) instead of the last ones; its warmup is
   * diffusers'. Takes 4 more bytes for each weight. invoke-training has none.
   * @default false
   */
  use_ema?: boolean;
  /**
   * How much of the average is kept at each step, once it has warmed up; it acts with
   * use_ema.
   * @default 0.9999
   */
  ema_decay?: number;
  /**
   * Encode captions once, ahead of training, and share the outputs with every later job. False
   * keeps both text encoders on the GPU and encodes at each step.
   * @default false
   */
  cache_text_encoder_outputs?: boolean;
  /** The dataset, and how it becomes samples. */
  data_loader: ImageCaptionSDDataLoaderConfig | DreamboothSDDataLoaderConfig;
}

/** An SDXL LoRA training run. */
export interface SdxlLoraConfig {
  /**
   * Selects this training type.
   * @default "SDXL_LORA"
   */
  type: "SDXL_LORA";
  /** Decides every random draw of the run. Null: one is drawn at submit and recorded. */
  seed?: number | null;
  /** A folder inside the store under which the results are published. Null: `outputs`. */
  base_output_dir?: string | null;
  /**
   * Where metrics go beside the job's events: a TensorBoard file among the results. The other
   * values would need secrets on the workers: refused.
   * @default "tensorboard"
   */
  report_to?: "all" | "tensorboard" | "wandb" | "comet_ml";
  /** Weight updates to make. Exactly one of this and max_train_epochs. */
  max_train_steps?: number | null;
  /** Passes over the dataset to make. Exactly one of this and max_train_steps. */
  max_train_epochs?: number | null;
  /** Keep a checkpoint after every n passes. Exactly one of this and save_every_n_steps. */
  save_every_n_epochs?: number | null;
  /** Keep a checkpoint after every n updates. Exactly one of this and save_every_n_epochs. */
  save_every_n_steps?: number | null;
  /**
   * Make validation images after every n passes. With validation_prompts, exactly one of this
   * and validate_every_n_steps; without prompts at most one, and there is nothing to make.
   */
  validate_every_n_epochs?: number | null;
  /**
   * Make validation images after every n updates. With validation_prompts, exactly one of this
   * and validate_every_n_epochs; without prompts at most one, and there is nothing to make.
   */
  validate_every_n_steps?: number | null;
  /**
   * The base model: a diffusers folder, as the workers see it, a Hub id, or one
   * `.safetensors` file that holds the whole model.
   * @default "stabilityai/stable-diffusion-xl-base-1.0"
   */
  model?: string;
  /**
   * Where `model` is a single file: the diffusers folder or Hub id whose configs and
   * tokenizers describe it. Null: the type's default model.
   */
  single_file_config?: string | null;
  /**
   * The optimizer and its settings.
   * @default {
   *   "optimizer_type": "AdamW",
   *   "learning_rate": 0.0001,
   *   "beta1": 0.9,
   *   "beta2": 0.999,
   *   "weight_decay": 0.01,
   *   "epsilon": 1e-08,
   *   "use_8bit": false
   * }
   */
  optimizer?: AdamOptimizerConfig | ProdigyOptimizerConfig | AdafactorOptimizerConfig;
  /**
   * How the learning rate moves over the run.
   * @default "constant"
   */
  lr_scheduler?: "linear" | "cosine" | "cosine_with_restarts" | "polynomial" | "constant" | "constant_with_warmup";
  /**
   * Updates over which the rate rises from 0; every scheduler but `constant` takes it.
   * @default 0
   */
  lr_warmup_steps?: number;
  /**
   * Encode images once, ahead of training, and share the latents with every later job. False
   * keeps the VAE on the GPU and encodes at each step. Needs center_crop.
   * @default false
   */
  cache_vae_outputs?: boolean;
  /**
   * Keep on the GPU only the model in use while making validation images. Slower, and takes
   * less memory; it acts with validation_prompts.
   * @default false
   */
  enable_cpu_offload_during_validation?: boolean;
  /**
   * Batches whose gradients make one weight update.
   * @default 1
   */
  gradient_accumulation_steps?: number;
  /**
   * The precision of the frozen weights. Trained weights and their optimizer state are always
   * float32; float16 trains with a dynamic loss scale, so that gradients do not vanish.
   * @default "bfloat16"
   */
  weight_dtype?: "float32" | "float16" | "bfloat16";
  /**
   * The precision of the computation; `no` takes weight_dtype's. `fp8` would need
   * TransformerEngine: refused.
   * @default "no"
   */
  mixed_precision?: "no" | "fp16" | "bf16" | "fp8";
  /**
   * Recompute each block in the backward pass: far less memory, about 20 % slower.
   * @default false
   */
  gradient_checkpointing?: boolean;
  /**
   * How many checkpoints to keep, newest last. Null keeps all. An old one is removed only once
   * the new one is recorded.
   */
  max_checkpoints?: number | null;
  /** Clip the gradients' norm to this. Null: no clipping. */
  max_grad_norm?: number | null;
  /**
   * Prompts to make images from through the run, as they stand: without caption_prefix. The
   * images have the training resolution and are published in `validation/`.
   * @default []
   */
  validation_prompts?: (string)[];
  /**
   * Images for each of validation_prompts. The noise they start from is decided by seed, prompt
   * and number, so that the images of different steps compare.
   * @default 4
   */
  num_validation_images_per_prompt?: number;
  /**
   * Samples of one forward pass.
   * @default 4
   */
  train_batch_size?: number;
  /**
   * Weight the loss by the dataset's masks, in latent space: white counts fully, black not at
   * all. Images without a mask count fully. Only JSONL datasets hold masks.
   * @default false
   */
  use_masks?: boolean;
  /**
   * The variant of a Hub repository's files to fetch (`fp16` is half the download); weights
   * without that variant are taken where there is none. For folders the same.
   * @default "fp16"
   */
  hf_variant?: string | null;
  /**
   * A diffusers folder or Hub id of a VAE to use instead of the base model's. The published
   * file does not hold it, but full_diffusers and single_file do.
   */
  vae_model?: string | null;
  /**
   * What the UNet predicts: the noise, or the velocity (Salimans & Ho, 2022). Null: what the
   * base model's scheduler says.
   */
  prediction_type?: "epsilon" | "v_prediction" | null;
  /**
   * Weight each sample's loss by min(snr, gamma) / snr, and with v-prediction by
   * min(snr, gamma) / (snr + 1): Min-SNR (Hang et al., 2023). Null: no weighting.
   * @default 5.0
   */
  min_snr_gamma?: number | null;
  /**
   * PyTorch's own attention is as fast and exact to repeat: true is refused.
   * @default false
   */
  xformers?: boolean;
  /** What each validation image should not show: one for each of validation_prompts. */
  negative_validation_prompts?: (string)[] | null;
  /**
   * Token to textual-inversion file (`.safetensors` with `clip_l` and `clip_g`): embeddings
   * that captions may use, and that are not trained.
   * @default {}
   */
  base_embeddings?: Record<string, unknown>;
  /**
   * How the LoRA is written. Both forms hold the same weights: `kohya` is what InvokeAI,
   * ComfyUI and diffusers read, `invoke_peft` has diffusers' own names.
   * @default "kohya"
   */
  lora_checkpoint_format?: "invoke_peft" | "kohya";
  /**
   * Put LoRA layers on the UNet.
   * @default true
   */
  train_unet?: boolean;
  /**
   * Put LoRA layers on both text encoders. Needs cache_text_encoder_outputs false.
   * @default true
   */
  train_text_encoder?: boolean;
  /** The text encoders' learning rate. It overrides optimizer.learning_rate; null leaves that. */
  text_encoder_learning_rate?: number | null;
  /** The UNet's learning rate. It overrides optimizer.learning_rate; null leaves that. */
  unet_learning_rate?: number | null;
  /**
   * The rank of the LoRA matrices. Alpha equals it, so that a LoRA's strength does not fall with
   * its rank; in invoke-training alpha is 1.
   * @default 4
   */
  lora_rank_dim?: number;
  /**
   * The UNet's layers that get a LoRA, each by the end of its name.
   * @default [
   *   "to_q",
   *   "to_k",
   *   "to_v",
   *   "proj",
   *   "proj_in",
   *   "proj_out",
   *   "conv",
   *   "conv1",
   *   "conv2",
   *   "conv_shortcut",
   *   "to_out.0",
   *   "time_emb_proj",
   *   "ff.net.2"
   * ]
   */
  unet_lora_target_modules?: (string)[];
  /**
   * The text encoders' layers that get a LoRA; it acts with train_text_encoder.
   * @default ["fc1", "fc2", "q_proj", "k_proj", "v_proj", "out_proj"]
   */
  text_encoder_lora_target_modules?: (string)[];
  /**
   * Encode captions once, ahead of training, and share the outputs with every later job. False
   * keeps both text encoders on the GPU and encodes at each step.
   * @default false
   */
  cache_text_encoder_outputs?: boolean;
  /** The dataset, and how it becomes samples. */
  data_loader: ImageCaptionSDDataLoaderConfig | DreamboothSDDataLoaderConfig;
}

/** An SDXL textual-inversion run (Gal et al., 2022): new words for both text encoders. */
export interface SdxlTextualInversionConfig {
  /**
   * Selects this training type.
   * @default "SDXL_TEXTUAL_INVERSION"
   */
  type: "SDXL_TEXTUAL_INVERSION";
  /** Decides every random draw of the run. Null: one is drawn at submit and recorded. */
  seed?: number | null;
  /** A folder inside the store under which the results are published. Null: `outputs`. */
  base_output_dir?: string | null;
  /**
   * Where metrics go beside the job's events: a TensorBoard file among the results. The other
   * values would need secrets on the workers: refused.
   * @default "tensorboard"
   */
  report_to?: "all" | "tensorboard" | "wandb" | "comet_ml";
  /** Weight updates to make. Exactly one of this and max_train_epochs. */
  max_train_steps?: number | null;
  /** Passes over the dataset to make. Exactly one of this and max_train_steps. */
  max_train_epochs?: number | null;
  /** Keep a checkpoint after every n passes. Exactly one of this and save_every_n_steps. */
  save_every_n_epochs?: number | null;
  /** Keep a checkpoint after every n updates. Exactly one of this and save_every_n_epochs. */
  save_every_n_steps?: number | null;
  /**
   * Make validation images after every n passes. With validation_prompts, exactly one of this
   * and validate_every_n_steps; without prompts at most one, and there is nothing to make.
   */
  validate_every_n_epochs?: number | null;
  /**
   * Make validation images after every n updates. With validation_prompts, exactly one of this
   * and validate_every_n_epochs; without prompts at most one, and there is nothing to make.
   */
  validate_every_n_steps?: number | null;
  /**
   * The base model: a diffusers folder, as the workers see it, a Hub id, or one
   * `.safetensors` file that holds the whole model.
   * @default "stabilityai/stable-diffusion-xl-base-1.0"
   */
  model?: string;
  /**
   * Where `model` is a single file: the diffusers folder or Hub id whose configs and
   * tokenizers describe it. Null: the type's default model.
   */
  single_file_config?: string | null;
  /**
   * The optimizer and its settings.
   * @default {
   *   "optimizer_type": "AdamW",
   *   "learning_rate": 0.0001,
   *   "beta1": 0.9,
   *   "beta2": 0.999,
   *   "weight_decay": 0.01,
   *   "epsilon": 1e-08,
   *   "use_8bit": false
   * }
   */
  optimizer?: AdamOptimizerConfig | ProdigyOptimizerConfig | AdafactorOptimizerConfig;
  /**
   * How the learning rate moves over the run.
   * @default "constant"
   */
  lr_scheduler?: "linear" | "cosine" | "cosine_with_restarts" | "polynomial" | "constant" | "constant_with_warmup";
  /**
   * Updates over which the rate rises from 0; every scheduler but `constant` takes it.
   * @default 0
   */
  lr_warmup_steps?: number;
  /**
   * Encode images once, ahead of training, and share the latents with every later job. False
   * keeps the VAE on the GPU and encodes at each step. Needs center_crop.
   * @default false
   */
  cache_vae_outputs?: boolean;
  /**
   * Keep on the GPU only the model in use while making validation images. Slower, and takes
   * less memory; it acts with validation_prompts.
   * @default false
   */
  enable_cpu_offload_during_validation?: boolean;
  /**
   * Batches whose gradients make one weight update.
   * @default 1
   */
  gradient_accumulation_steps?: number;
  /**
   * The precision of the frozen weights. Trained weights and their optimizer state are always
   * float32; float16 trains with a dynamic loss scale, so that gradients do not vanish.
   * @default "bfloat16"
   */
  weight_dtype?: "float32" | "float16" | "bfloat16";
  /**
   * The precision of the computation; `no` takes weight_dtype's. `fp8` would need
   * TransformerEngine: refused.
   * @default "no"
   */
  mixed_precision?: "no" | "fp16" | "bf16" | "fp8";
  /**
   * Recompute each block in the backward pass: far less memory, about 20 % slower.
   * @default false
   */
  gradient_checkpointing?: boolean;
  /**
   * How many checkpoints to keep, newest last. Null keeps all. An old one is removed only once
   * the new one is recorded.
   */
  max_checkpoints?: number | null;
  /** Clip the gradients' norm to this. Null: no clipping. */
  max_grad_norm?: number | null;
  /**
   * Prompts to make images from through the run, as they stand: without caption_prefix. The
   * images have the training resolution and are published in `validation/`.
   * @default []
   */
  validation_prompts?: (string)[];
  /**
   * Images for each of validation_prompts. The noise they start from is decided by seed, prompt
   * and number, so that the images of different steps compare.
   * @default 4
   */
  num_validation_images_per_prompt?: number;
  /**
   * Samples of one forward pass.
   * @default 4
   */
  train_batch_size?: number;
  /**
   * Weight the loss by the dataset's masks, in latent space: white counts fully, black not at
   * all. Images without a mask count fully. Only JSONL datasets hold masks.
   * @default false
   */
  use_masks?: boolean;
  /**
   * The variant of a Hub repository's files to fetch (`fp16` is half the download); weights
   * without that variant are taken where there is none. For folders the same.
   * @default "fp16"
   */
  hf_variant?: string | null;
  /**
   * A diffusers folder or Hub id of a VAE to use instead of the base model's. The published
   * file does not hold it, but full_diffusers and single_file do.
   */
  vae_model?: string | null;
  /**
   * What the UNet predicts: the noise, or the velocity (Salimans & Ho, 2022). Null: what the
   * base model's scheduler says.
   */
  prediction_type?: "epsilon" | "v_prediction" | null;
  /**
   * Weight each sample's loss by min(snr, gamma) / snr, and with v-prediction by
   * min(snr, gamma) / (snr + 1): Min-SNR (Hang et al., 2023). Null: no weighting.
   * @default 5.0
   */
  min_snr_gamma?: number | null;
  /**
   * PyTorch's own attention is as fast and exact to repeat: true is refused.
   * @default false
   */
  xformers?: boolean;
  /** What each validation image should not show: one for each of validation_prompts. */
  negative_validation_prompts?: (string)[] | null;
  /**
   * Embedding vectors of the new word; it takes as many tokens of a prompt. With initial_phrase,
   * the phrase decides: leave it 1.
   * @default 1
   */
  num_vectors?: number;
  /** The new word. The tokenizers must not have it yet. */
  placeholder_token: string;
  /**
   * A word whose embedding the vectors start from. Exactly one of this, initial_embedding_file
   * and initial_phrase.
   */
  initializer_token?: string | null;
  /**
   * A `.safetensors` file with `clip_l` and `clip_g` to go on from. Exactly one of this,
   * initializer_token and initial_phrase.
   */
  initial_embedding_file?: string | null;
  /**
   * A phrase whose tokens' embeddings the vectors start from, one each. Exactly one of this,
   * initializer_token and initial_embedding_file.
   */
  initial_phrase?: string | null;
  /** The dataset, and how it becomes samples. */
  data_loader: TextualInversionSDDataLoaderConfig;
}

/** How images become samples of a new word: templates with the word in them. */
export interface TextualInversionSDDataLoaderConfig {
  /**
   * The only data loader that textual inversion takes.
   * @default "TEXTUAL_INVERSION_SD_DATA_LOADER"
   */
  type?: "TEXTUAL_INVERSION_SD_DATA_LOADER";
  /** Sort images into sizes near their own aspect ratio. Null: crop all to `resolution`. */
  aspect_ratio_buckets?: AspectRatioBucketConfig | null;
  /**
   * The size of training images in pixels: a square's side, or (height, width). With buckets,
   * their sizes hold; leave this out then, or make it equal to target_resolution.
   * @default 512
   */
  resolution?: number | [number, number];
  /**
   * Crop at the centre. False: at a place drawn for each sample and step.
   * @default true
   */
  center_crop?: boolean;
  /**
   * Mirror half of the samples, drawn for each sample and step.
   * @default false
   */
  random_flip?: boolean;
  /**
   * Processes that read and decode ahead of the GPU; 0 reads in the training process.
   * @default 0
   */
  dataloader_num_workers?: number;
  /** Where the images are, and captions with keep_original_captions. */
  dataset: ImageDirDatasetConfig | ImageCaptionDirDatasetConfig | ImageCaptionJsonlDatasetConfig | HFHubImageCaptionDatasetConfig | ArchiveDatasetConfig;
  /** Built-in templates for a style or a thing. Exactly one of this and caption_templates. */
  caption_preset?: "style" | "object" | null;
  /**
   * Captions with `{}` where the placeholder token goes, such as `a photo of {}`; one is
   * drawn for each sample and pass. Exactly one of this and caption_preset.
   */
  caption_templates?: (string)[] | null;
  /**
   * Put the template before the image's own caption instead of in its place.
   * @default false
   */
  keep_original_captions?: boolean;
  /**
   * Split captions at this, such as a comma, and put the parts in an order drawn for each
   * sample and pass.
   */
  shuffle_caption_delimiter?: string | null;
}

/** A training job. */
export interface TrainingJob {
  /**
   * The version of this description.
   * @default 1
   */
  schema_version?: 1;
  /** The job's id. Submitting the same id twice gives one job. Null: one is made at submit. */
  id?: string | null;
  /**
   * What the published file is called.
   * @default "lora"
   */
  name?: string;
  /** A preset whose values stand where `training` has none. */
  preset?: string | null;
  /**
   * Whose job it is. Tenants get fair shares of the fleet.
   * @default "default"
   */
  tenant?: string;
  /**
   * Among its tenant's waiting jobs: 9 goes first.
   * @default 0
   */
  priority?: number;
  /**
   * What trains it. `diffusers` is this package's own; `invoke-training` is that library, on
   * the workers that have it: see docs/guides/invoke-training.md.
   * @default "diffusers"
   */
  engine?: "diffusers" | "invoke-training";
  /** What to train, by its `type`. */
  training: SdxlLoraConfig | SdxlTextualInversionConfig | SdxlFinetuneConfig | FluxLoraConfig;
}

/** A file in the store. */
export interface Artifact {
  /** Its file name. */
  name: string;
  /** Its key in the store. */
  key: string;
  /** The digest of its bytes, in hex. */
  sha256: string;
  /** Its length in bytes. */
  size: number;
}

/**
 * The run can go on from here; the last one of a run is its end.
 *
 * The `train` stage records it and only then removes those beyond max_checkpoints: the trainer
 * removes none.
 */
export interface CheckpointSaved {
  /** @default "checkpoint" */
  kind: "checkpoint";
  /** Weight updates made. */
  step: number;
  /** The store key of the exact training state. */
  state_key: string;
  /** What was trained, as of this step, in its published form; the file to name first. */
  weights: Artifact;
  /**
   * The rest of it, where it is a folder.
   * @default []
   */
  others: (Artifact)[];
}

/** The dataset was checked; errors end the job. */
export interface DatasetChecked {
  /** @default "dataset_checked" */
  kind: "dataset_checked";
  /** Good ones. */
  images: number;
  errors: number;
  warnings: number;
  /** The store key of the report: every finding with its file, and the images of each size. */
  report_key: string;
}

/** The job was checked and its chain dispatched. */
export interface JobAccepted {
  /** @default "accepted" */
  kind: "accepted";
  /** The queue of its GPU stages. */
  queue: string;
  /** Why that queue. */
  reason: string;
}

/** The job is over. */
export interface JobEnded {
  /** @default "ended" */
  kind: "ended";
  status: "succeeded" | "failed" | "cancelled";
  /**
   * Why, where it did not succeed.
   * @default ""
   */
  message: string;
  code: ErrorCode | null;
}

/** Something a person should know. */
export interface Note {
  /** @default "note" */
  kind: "note";
  level: "info" | "warning";
  message: string;
}

/** How far a stage is. */
export interface Progress {
  /** @default "progress" */
  kind: "progress";
  stage: string;
  done: number;
  total: number;
  unit: "entries" | "steps" | "files" | "bytes";
  /** Units done per second, smoothed. */
  per_second: number | null;
  /** The mean loss of this step. */
  loss: number | null;
  learning_rate: number | null;
}

/** A stage is done. */
export interface StageFinished {
  /** @default "stage_finished" */
  kind: "stage_finished";
  stage: string;
  attempt: number;
  seconds: number;
  /** What it did, in a few words. */
  summary: string;
}

/** A worker began a stage. */
export interface StageStarted {
  /** @default "stage_started" */
  kind: "stage_started";
  stage: string;
  /** The fencing token this start holds. */
  attempt: number;
  queue: string;
  worker: string;
}

/**
 * Images of the validation prompts were made.
 *
 * A run that goes on from an earlier step tells of the same step again; the later one holds.
 */
export interface ValidationImages {
  /** @default "validation_images" */
  kind: "validation_images";
  /** Weight updates made. */
  step: number;
  /** By prompt, then by number; one that came out as no image is left out. */
  images: (Artifact)[];
}

export type JobEvent = JobAccepted | StageStarted | StageFinished | Progress | DatasetChecked | CheckpointSaved | ValidationImages | Note | JobEnded;

export type RaisedError = [string, ErrorCode, string, boolean];

/** The result of `training.submit`, once its job has succeeded. */
export interface JobResult {
  /** Where its first file is: a path, or an address in the store's cloud. */
  published: string;
  /** Where its manifest is. */
  manifest: string;
  /** The digest of the first file, in hex. */
  sha256: string;
  /** The keys in the store of all its files, the trained weights first. */
  files: (string)[];
  job_id: string;
  /**
   * The job's last stage.
   * @default "publish"
   */
  stage: "publish";
}

/** The result of `training.submit` where the job was sent before, under another result id. */
export interface KnownJob {
  job_id: string;
}

export type SubmitResult = JobResult | KnownJob;

/** Why a job failed. */
export interface Failure {
  code: ErrorCode;
  /** The stage it happened in, or `submit`. */
  stage: string | null;
  /** One sentence, or a list of faults, a line each. */
  message: string | null;
}

/** How a job ended. */
export interface JobEnd {
  job_id: string;
  /** What the job's document calls it. */
  name: string;
  status: "succeeded" | "failed" | "cancelled";
  /** Null where nothing was published. */
  result: Published | null;
  error: Failure | null;
}

/** What a job has published. */
export interface Published {
  /** Where its first file is: a path, or an address in the store's cloud. */
  published: string;
  /** Where its manifest is. */
  manifest: string;
  /** The digest of the first file, in hex. */
  sha256: string;
  /** The keys in the store of all its files, the trained weights first. */
  files: (string)[];
}

/** The body of a webhook. */
export interface Webhook {
  type: "job.succeeded" | "job.failed" | "job.cancelled";
  /** When the job ended. */
  timestamp: string;
  data: JobEnd;
}

/** What computed a result. */
export interface Engine {
  name: string;
  /** The device's name; null where somebody cancelled the job before the training's end. */
  device: string | null;
  /** Library to version. */
  versions: Record<string, string>;
  /** Which faults of the engine were repaired; null where it needs no repair. */
  repairs: (string)[] | null;
}

/** A job's GPU memory. */
export interface GpuMemory {
  /** What it was routed by. */
  estimated_bytes: number;
  /** The most that its training took; null on a CPU. */
  peak_bytes: number | null;
}

/** What happened in one stage. */
export interface StageRecord {
  queue: string;
  worker: string;
  attempt: number;
  /** Seconds since 1970, by the broker's clock. */
  started_at: number;
  seconds: number | null;
  summary: string | null;
}

/** `manifest.json` beside a job's results, written last: what it names is there. */
export interface Manifest {
  /** @default 1 */
  manifest_version: 1;
  job_id: string;
  /** The job with nothing left open; addresses without queries and credentials. */
  job: TrainingJob;
  /** When the job was submitted. */
  created_at: string;
  published_at: string;
  /** The trained weights first. */
  files: (Artifact)[];
  /** The store key of the dataset as it was trained on. */
  dataset: string;
  /** Weight updates made. */
  steps: number;
  /** Null where somebody cancelled the job before the training's end. */
  final_loss: number | null;
  gpu_memory: GpuMemory;
  /** What happened in each stage before `publish` ended. */
  stages: Record<string, StageRecord>;
  engine: Engine;
}

export interface ModelConfig {
  /** What is trained. */
  trainingType: "SDXL_LORA" | "SDXL_TEXTUAL_INVERSION" | "SDXL_FINETUNE" | "FLUX_LORA";
  /**
   * The base model: a diffusers folder, as the workers see it, a Hub id, or one
   * `.safetensors` file that holds the whole model.
   * @default "black-forest-labs/FLUX.1-dev"
   */
  baseModel: string;
}

export interface BasicTrainingConfig {
  /**
   * The size of training images in pixels: a square's side, or (height, width). With buckets,
   * their sizes hold; leave this out then, or make it equal to target_resolution.
   * @default 512
   */
  resolution: 512 | 768 | 1024;
  /**
   * Samples of one forward pass.
   * @default 1
   */
  batchSize: number;
  /** Weight updates to make. Exactly one of this and max_train_epochs. */
  maxTrainSteps: number;
  /**
   * The transformer's learning rate. It overrides optimizer.learning_rate; null leaves that.
   * Left out with Prodigy or Adafactor it is null, not 4e-4: their rates are relative, and
   * invoke-training, where the default overrides Prodigy's, trains 2500 times too slowly. A value
   * that is given overrides theirs as well.
   * @default 0.0004
   */
  learningRate: number;
  /**
   * The rank of the LoRA matrices.
   * @default 4
   */
  loraRank: number;
}

export interface FluxAdvancedConfig {
  /**
   * How the LoRA is written. Both forms hold the same weights; InvokeAI, ComfyUI and diffusers
   * read both.
   * @default "kohya"
   */
  loraCheckpointFormat: "invoke_peft" | "kohya";
  /**
   * Put LoRA layers on the transformer.
   * @default true
   */
  trainTransformer: boolean;
  /**
   * Put LoRA layers on the CLIP text encoder; T5 is never trained. Needs
   * cache_text_encoder_outputs false.
   * @default false
   */
  trainTextEncoder: boolean;
  /**
   * The precision of the frozen weights. LoRA weights and their optimizer state are always
   * float32; float16 trains with a dynamic loss scale, so that gradients do not vanish.
   * @default "float16"
   */
  weightDtype: "float32" | "float16" | "bfloat16";
  /**
   * Recompute each block in the backward pass: far less memory, about 20 % slower.
   * @default false
   */
  gradientCheckpointing: boolean;
  /**
   * Encode captions once, ahead of training, and share the outputs with every later job. False
   * keeps both text encoders on the GPU and encodes at each step.
   * @default false
   */
  cacheTextEncoderOutputs: boolean;
  /**
   * Encode images once, ahead of training, and share the latents with every later job. False
   * keeps the VAE on the GPU and encodes at each step. Needs center_crop.
   * @default false
   */
  cacheVaeOutputs: boolean;
  /**
   * How noise levels are drawn: `shift` draws sigmoid(sigmoid_scale * N(0, 1)) and shifts it
   * towards noise by discrete_flow_shift, `uniform` draws evenly, `resolution_shift` (not in
   * invoke-training) shifts by what FLUX samples such a size with: exp(0.5) at 256 patches (256 x
   * 256 pixels) to exp(1.15) at 4096 (1024 x 1024), the exponent linear in the patches.
   * @default "shift"
   */
  timestepSampler: "shift" | "uniform" | "resolution_shift";
  /**
   * `shift` maps t to shift * t / (1 + (shift - 1) * t); 1 leaves it.
   * @default 3.0
   */
  discreteFlowShift: number;
  /**
   * The guidance that a guidance-distilled transformer (FLUX.1-dev) is trained under; others
   * have no such input.
   * @default 1.0
   */
  guidanceScale: number;
  /**
   * How the learning rate moves over the run.
   * @default "constant_with_warmup"
   */
  lrScheduler: "linear" | "cosine" | "cosine_with_restarts" | "polynomial" | "constant" | "constant_with_warmup";
  /**
   * Updates over which the rate rises from 0; every scheduler but `constant` takes it.
   * @default 10
   */
  lrWarmupSteps: number;
}

/** What the presets for FLUX set, by the memory of the GPU. */
export interface MemoryPresets {
  "flux_1x24gb": { batchSize: 1, gradientAccumulation: 4, weightDtype: "bfloat16", gradientCheckpointing: true, cacheVaeOutputs: true };
  "flux_1x40gb": { batchSize: 2, gradientAccumulation: 2, weightDtype: "bfloat16", gradientCheckpointing: true, cacheVaeOutputs: false };
  "flux_1x80gb": { batchSize: 4, gradientAccumulation: 1, weightDtype: "float16", gradientCheckpointing: false, cacheVaeOutputs: false };
}

export const MEMORY_PRESETS: MemoryPresets = {
  "flux_1x24gb": {
    "batchSize": 1,
    "gradientAccumulation": 4,
    "weightDtype": "bfloat16",
    "gradientCheckpointing": true,
    "cacheVaeOutputs": true
  },
  "flux_1x40gb": {
    "batchSize": 2,
    "gradientAccumulation": 2,
    "weightDtype": "bfloat16",
    "gradientCheckpointing": true,
    "cacheVaeOutputs": false
  },
  "flux_1x80gb": {
    "batchSize": 4,
    "gradientAccumulation": 1,
    "weightDtype": "float16",
    "gradientCheckpointing": false,
    "cacheVaeOutputs": false
  }
};

const FORM: Record<TrainingType, FormTable> = {
  "SDXL_LORA": {
    "set": {
      "type": "SDXL_LORA",
      "data_loader.type": "IMAGE_CAPTION_SD_DATA_LOADER",
      "data_loader.aspect_ratio_buckets.divisible_by": 64
    },
    "fields": {
      "baseModel": [
        {
          "path": "model"
        }
      ],
      "resolution": [
        {
          "path": "data_loader.resolution"
        },
        {
          "path": "data_loader.aspect_ratio_buckets.target_resolution"
        },
        {
          "path": "data_loader.aspect_ratio_buckets.start_dim",
          "times": 0.5
        },
        {
          "path": "data_loader.aspect_ratio_buckets.end_dim",
          "times": 2
        }
      ],
      "batchSize": [
        {
          "path": "train_batch_size"
        }
      ],
      "maxTrainSteps": [
        {
          "path": "max_train_steps"
        },
        {
          "path": "save_every_n_steps",
          "times": 0.25
        }
      ],
      "learningRate": [
        {
          "path": "optimizer.learning_rate"
        }
      ],
      "loraRank": [
        {
          "path": "lora_rank_dim"
        }
      ],
      "loraCheckpointFormat": [
        {
          "path": "lora_checkpoint_format"
        }
      ],
      "trainTextEncoder": [
        {
          "path": "train_text_encoder"
        }
      ],
      "weightDtype": [
        {
          "path": "weight_dtype"
        }
      ],
      "gradientCheckpointing": [
        {
          "path": "gradient_checkpointing"
        }
      ],
      "cacheTextEncoderOutputs": [
        {
          "path": "cache_text_encoder_outputs"
        }
      ],
      "cacheVaeOutputs": [
        {
          "path": "cache_vae_outputs"
        }
      ],
      "lrScheduler": [
        {
          "path": "lr_scheduler"
        }
      ],
      "lrWarmupSteps": [
        {
          "path": "lr_warmup_steps"
        }
      ],
      "gradientAccumulation": [
        {
          "path": "gradient_accumulation_steps"
        }
      ]
    }
  },
  "SDXL_TEXTUAL_INVERSION": {
    "set": {
      "type": "SDXL_TEXTUAL_INVERSION",
      "data_loader.type": "TEXTUAL_INVERSION_SD_DATA_LOADER",
      "data_loader.aspect_ratio_buckets.divisible_by": 64
    },
    "fields": {
      "baseModel": [
        {
          "path": "model"
        }
      ],
      "resolution": [
        {
          "path": "data_loader.resolution"
        },
        {
          "path": "data_loader.aspect_ratio_buckets.target_resolution"
        },
        {
          "path": "data_loader.aspect_ratio_buckets.start_dim",
          "times": 0.5
        },
        {
          "path": "data_loader.aspect_ratio_buckets.end_dim",
          "times": 2
        }
      ],
      "batchSize": [
        {
          "path": "train_batch_size"
        }
      ],
      "maxTrainSteps": [
        {
          "path": "max_train_steps"
        },
        {
          "path": "save_every_n_steps",
          "times": 0.25
        }
      ],
      "learningRate": [
        {
          "path": "optimizer.learning_rate"
        }
      ],
      "weightDtype": [
        {
          "path": "weight_dtype"
        }
      ],
      "gradientCheckpointing": [
        {
          "path": "gradient_checkpointing"
        }
      ],
      "cacheVaeOutputs": [
        {
          "path": "cache_vae_outputs"
        }
      ],
      "lrScheduler": [
        {
          "path": "lr_scheduler"
        }
      ],
      "lrWarmupSteps": [
        {
          "path": "lr_warmup_steps"
        }
      ],
      "gradientAccumulation": [
        {
          "path": "gradient_accumulation_steps"
        }
      ]
    }
  },
  "SDXL_FINETUNE": {
    "set": {
      "type": "SDXL_FINETUNE",
      "data_loader.type": "IMAGE_CAPTION_SD_DATA_LOADER",
      "data_loader.aspect_ratio_buckets.divisible_by": 64
    },
    "fields": {
      "baseModel": [
        {
          "path": "model"
        }
      ],
      "resolution": [
        {
          "path": "data_loader.resolution"
        },
        {
          "path": "data_loader.aspect_ratio_buckets.target_resolution"
        },
        {
          "path": "data_loader.aspect_ratio_buckets.start_dim",
          "times": 0.5
        },
        {
          "path": "data_loader.aspect_ratio_buckets.end_dim",
          "times": 2
        }
      ],
      "batchSize": [
        {
          "path": "train_batch_size"
        }
      ],
      "maxTrainSteps": [
        {
          "path": "max_train_steps"
        },
        {
          "path": "save_every_n_steps",
          "times": 0.25
        }
      ],
      "learningRate": [
        {
          "path": "optimizer.learning_rate"
        }
      ],
      "weightDtype": [
        {
          "path": "weight_dtype"
        }
      ],
      "gradientCheckpointing": [
        {
          "path": "gradient_checkpointing"
        }
      ],
      "cacheTextEncoderOutputs": [
        {
          "path": "cache_text_encoder_outputs"
        }
      ],
      "cacheVaeOutputs": [
        {
          "path": "cache_vae_outputs"
        }
      ],
      "lrScheduler": [
        {
          "path": "lr_scheduler"
        }
      ],
      "lrWarmupSteps": [
        {
          "path": "lr_warmup_steps"
        }
      ],
      "gradientAccumulation": [
        {
          "path": "gradient_accumulation_steps"
        }
      ]
    }
  },
  "FLUX_LORA": {
    "set": {
      "type": "FLUX_LORA",
      "data_loader.type": "IMAGE_CAPTION_FLUX_DATA_LOADER",
      "data_loader.aspect_ratio_buckets.divisible_by": 64
    },
    "fields": {
      "baseModel": [
        {
          "path": "model"
        }
      ],
      "resolution": [
        {
          "path": "data_loader.resolution"
        },
        {
          "path": "data_loader.aspect_ratio_buckets.target_resolution"
        },
        {
          "path": "data_loader.aspect_ratio_buckets.start_dim",
          "times": 0.5
        },
        {
          "path": "data_loader.aspect_ratio_buckets.end_dim",
          "times": 2
        }
      ],
      "batchSize": [
        {
          "path": "train_batch_size"
        }
      ],
      "maxTrainSteps": [
        {
          "path": "max_train_steps"
        },
        {
          "path": "save_every_n_steps",
          "times": 0.25
        }
      ],
      "learningRate": [
        {
          "path": "transformer_learning_rate"
        },
        {
          "path": "optimizer.learning_rate"
        }
      ],
      "loraRank": [
        {
          "path": "lora_rank_dim"
        }
      ],
      "loraCheckpointFormat": [
        {
          "path": "lora_checkpoint_format"
        }
      ],
      "trainTransformer": [
        {
          "path": "train_transformer"
        }
      ],
      "trainTextEncoder": [
        {
          "path": "train_text_encoder"
        }
      ],
      "weightDtype": [
        {
          "path": "weight_dtype"
        }
      ],
      "gradientCheckpointing": [
        {
          "path": "gradient_checkpointing"
        }
      ],
      "cacheTextEncoderOutputs": [
        {
          "path": "cache_text_encoder_outputs"
        }
      ],
      "cacheVaeOutputs": [
        {
          "path": "cache_vae_outputs"
        }
      ],
      "timestepSampler": [
        {
          "path": "timestep_sampler"
        }
      ],
      "discreteFlowShift": [
        {
          "path": "discrete_flow_shift"
        }
      ],
      "guidanceScale": [
        {
          "path": "guidance_scale"
        }
      ],
      "lrScheduler": [
        {
          "path": "lr_scheduler"
        }
      ],
      "lrWarmupSteps": [
        {
          "path": "lr_warmup_steps"
        }
      ],
      "gradientAccumulation": [
        {
          "path": "gradient_accumulation_steps"
        }
      ]
    }
  }
};

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
