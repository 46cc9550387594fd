"""Estimates of the GPU memory that a job's GPU stages need, by part.

Weights, gradients and optimizer state are counted from the models' shapes. Activations are counted
in units of the models' own, and the number of units was found by traces of real-size models; so the
estimates are within 5 % of the traces in ``benchmarks/RESULTS.md``. They do not measure the card at
hand; ``training-worker calibrate`` does.

A job needs what stays on the card for the whole of training, and beside it what the phase takes
that takes most.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass

from routing.classes import GIB

_DOUBLE_BLOCKS, _SINGLE_BLOCKS = 19, 38

FLUX_BLOCKS = _DOUBLE_BLOCKS + _SINGLE_BLOCKS
"""Blocks of FLUX's transformer that gradient checkpointing can recompute."""

UNET_BLOCKS = 7
"""Blocks of SDXL's UNet that it can recompute: 3 down, the middle, 3 up."""

_ATTENTION = ("attn.to_q", "attn.to_k", "attn.to_v")
_TEXT_ATTENTION = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out")

FLUX_DOUBLE_LAYERS = {
    **dict.fromkeys((*_ATTENTION, "attn.to_out.0", *_TEXT_ATTENTION), (1, 1)),
    **dict.fromkeys(("ff.net.0.proj", "ff_context.net.0.proj"), (1, 4)),
    **dict.fromkeys(("ff.net.2", "ff_context.net.2"), (4, 1)),
}
"""The linear layers of a double block that can take a LoRA: inputs and outputs, in widths."""

FLUX_SINGLE_LAYERS = dict.fromkeys(_ATTENTION, (1, 1)) | {"proj_mlp": (1, 4), "proj_out": (5, 1)}
"""Those of a single block."""

# Layers with one input, which is cast and kept once.
_INPUTS = {
    **dict.fromkeys((*_ATTENTION, "proj_mlp"), "norm"),
    **dict.fromkeys(_TEXT_ATTENTION[:3], "context_norm"),
    **dict.fromkeys(("attn1.to_q", "attn1.to_k", "attn1.to_v"), "norm1"),
}

UNET_LAYERS = {
    "attn1.to_q": (166_400, 100.0),
    "attn1.to_k": (166_400, 100.0),
    "attn1.to_v": (166_400, 100.0),
    "attn1.to_out.0": (166_400, 0.0),
    "attn2.to_q": (166_400, 100.0),
    "attn2.to_k": (226_560, 0.0),
    "attn2.to_v": (226_560, 0.0),
    "attn2.to_out.0": (166_400, 0.0),
    "ff.net.0.proj": (748_800, 100.0),
    "ff.net.2": (416_000, 400.0),
    "proj_in": (21_760, 20.0),
    "proj_out": (21_760, 20.0),
    "conv1": (189_440, 76.25),
    "conv2": (137_600, 46.25),
    "conv_shortcut": (23_040, 0.0),
    "time_emb_proj": (35_520, 0.0),
    "downsamplers.0.conv": (9_600, 0.0),
    "upsamplers.0.conv": (19_200, 0.0),
}
"""The layers of SDXL's UNet that can take a LoRA, by the end of their names: trained weights for
each unit of rank, and inputs for each pixel of an image that are not kept for other layers anyway,
of all layers of that name."""

CLIP_LAYERS = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "out_proj"), (768 + 768, 1280 + 1280)),
    **dict.fromkeys(("fc1", "fc2"), (768 + 3072, 1280 + 5120)),
}
"""The layers of a CLIP that can take a LoRA: inputs and outputs in CLIP-L and in OpenCLIP bigG."""

CLIP_DEPTHS = (12, 32)
"""The blocks of these two CLIPs."""

# Parameters, counted in the models.
_FLUX = 11_901_408_320
_FLUX_LINEARS = 11_834_228_736  # of its blocks, which quantization replaces
_FLUX_MODULATIONS = 3_227_516_928  # of these
_T5 = 4_762_310_656
_T5_OUT = 24 * 10_240 * 4096  # transformers keeps these in float32 if the others are float16
_CLIP_L = 123_060_480
_CLIP_G = 694_659_840
_UNET = 2_567_463_684
_VAE_BYTES = 83_819_683 * 4
# Bytes of a quantized weight with its scales: one for each row, or one for each 64 weights.
_QUANTIZED_BYTES = {"fp8": 1.0, "int8": 1.0, "nf4": 0.5 + 1 / 64 + 1 / 4096}
_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_WIDTH = 3072  # of FLUX's blocks
# Of the activations that are kept in half precision, the share that is kept in float32: nothing is
# cast there, and layers with one input share it.
_UNCAST_SHARE = 0.58
# The shares of the UNet's blocks in what it keeps, and, checkpointed, in what it has at the peak:
# the rest of that is of the block that is recomputed.
_KEPT_SHARES = (0.025, 0.096, 0.205, 0.106, 0.318, 0.168, 0.082)
_STORED_SHARES = (0.025, 0.061, 0.076, 0.063, 0.143, 0.143, 0.061)
# The share of the inputs of trained layers that checkpointing keeps, and that a trained UNet keeps:
# most of them are kept for other layers anyway.
_STORED_INPUTS_SHARE = 0.05
_UNET_INPUTS_SHARE = 0.86
# Captions are the inputs of these layers: values of one caption, in all layers of a name.
_UNET_TEXT_LAYERS = ("attn2.to_k", "attn2.to_v")
_UNET_TEXT_INPUTS = 70 * 77 * 2048
# The VAE's peak in float32, for each pixel: traced.
_ENCODE_PIXEL_BYTES = 2570.0
_DECODE_PIXEL_BYTES = 3080.0
# The cache stage encodes images of up to this many pixels together, and eight captions.
_CACHED_PIXELS = 1024 * 1024
_CAPTIONS = 8
_T5_TOKEN_BYTES = 123_000.0  # activations, without gradients
# What both CLIPs keep of a caption, with gradients: to their embeddings, or to a LoRA.
_CLIP_BYTES = 123e6
_CLIP_LORA_BYTES = 330e6
# What remains, per pixel, when the last gradients of a UNet are made.
_UNET_END_PIXEL_BYTES = 300.0


@dataclass(frozen=True)
class MemoryModel:
    """The constants of the model that depend on the kernels and the card.

    A calibration replaces some of them. Every estimate is linear in them, so that least squares fit
    them to measurements.
    """

    flux_kept_copies: float = 14.7
    """Activations of shape (tokens, 3072) that a block keeps, without inputs of trained layers."""

    flux_recomputed_copies: float = 28.0
    """Such activations while a checkpointed block is recomputed, without those inputs."""

    flux_overhead_bytes: float = 0.75e9
    """CUDA's context, cuBLAS's workspaces and the allocator's slack."""

    sdxl_pixel_bytes: float = 6430
    """Activations that the UNet keeps in half precision, per pixel of an image, without inputs of
    trained layers."""

    sdxl_checkpointed_pixel_bytes: float = 1075
    """The same with gradient checkpointing of all blocks, while one is recomputed."""

    sdxl_overhead_bytes: float = 0.75e9
    """CUDA's context, cuBLAS's workspaces and the allocator's slack."""


PUBLISHED = MemoryModel()
"""The constants from traces, used without a calibration."""


@dataclass(frozen=True, kw_only=True)
class RunShape:
    """The options of a job of any family that decide its memory.

    Attributes:
        pixels: Width times height of the largest training image, after bucketing.
        batch_size: Samples of one forward pass.
        weight_dtype: ``float32``, ``bfloat16`` or ``float16``, for the frozen weights.
        compute_dtype: The same, for the computation.
        rank: The rank of the LoRA; 0 without one.
        layers: The denoiser's layers with a LoRA.
        clip_layers: The text encoders' layers with a LoRA.
        checkpointed_blocks: The first blocks of the denoiser, whose activations are recomputed in
            the backward pass.
        text_encoders_resident: The encoders stay on the GPU: their outputs are not cached.
        vae_resident: The VAE stays on the GPU and encodes at each step, image by image.
        accumulates: Several batches make one update: gradients are kept between them.
        optimizer_bytes: The optimizer's state per trained weight; 8 for AdamW.
        validation_pixels: Width times height of the validation images; 0 without any.
    """

    pixels: int
    batch_size: int
    weight_dtype: str
    compute_dtype: str
    rank: int = 0
    layers: frozenset[str] = frozenset()
    clip_layers: frozenset[str] = frozenset()
    checkpointed_blocks: int
    text_encoders_resident: bool = False
    vae_resident: bool = False
    accumulates: bool = False
    optimizer_bytes: float = 8
    validation_pixels: int = 0

    @property
    def weight_bytes(self) -> int:
        """Bytes of a frozen weight."""
        return _DTYPE_BYTES[self.weight_dtype]

    @property
    def compute_bytes(self) -> int:
        """Bytes of a number of an activation."""
        return _DTYPE_BYTES[self.compute_dtype]

    @property
    def uncast_share(self) -> float:
        """The share of the activations that remains where nothing is cast."""
        return _UNCAST_SHARE if self.compute_dtype == "float32" else 1.0

    @property
    def casts_weights(self) -> bool:
        """Whether the backward pass needs copies of the frozen weights in another precision."""
        return self.compute_bytes != self.weight_bytes


@dataclass(frozen=True, kw_only=True)
class FluxShape(RunShape):
    """The options of a FLUX LoRA job that decide its memory.

    Attributes:
        quantization: ``fp8``, ``int8`` or ``nf4`` of the frozen transformer; None for none.
        text_tokens: Tokens of a caption that T5 reads.
    """

    quantization: str | None = None
    text_tokens: int = 512


@dataclass(frozen=True, kw_only=True)
class SdxlShape(RunShape):
    """The options of an SDXL job that decide its memory.

    Attributes:
        trains_unet: The UNet's own weights are trained, in float32.
        trains_embeddings: Rows of the text encoders' embedding tables are trained.
        weight_copies: Further float32 copies of the trained weights: 1 for a moving average.
    """

    trains_unet: bool = False
    trains_embeddings: bool = False
    weight_copies: int = 0


@dataclass(frozen=True)
class Estimate:
    """The GPU memory of a run in GiB, by part.

    Attributes:
        weights_gib: The frozen base model.
        text_encoders_gib: The text encoders, if their outputs are not cached.
        adapters_gib: Trained weights (an adapter's, or the model's own) and a moving average.
        optimizer_gib: The optimizer's state.
        activations_gib: What the phase that takes most needs beside these: activations, gradients,
            and what encoders and the optimizer work with.
        overhead_gib: CUDA's context and the allocator's slack.
    """

    weights_gib: float
    text_encoders_gib: float
    adapters_gib: float
    optimizer_gib: float
    activations_gib: float
    overhead_gib: float

    @property
    def needed_gib(self) -> float:
        """The sum of the parts."""
        return sum(self.parts().values())

    @property
    def needed_bytes(self) -> int:
        """The sum of the parts, in bytes."""
        return round(self.needed_gib * GIB)

    def parts(self) -> dict[str, float]:
        """Return the GiB of each part by name, in the order of display."""
        return {name.removesuffix("_gib"): gib for name, gib in asdict(self).items()}


def estimate_flux_lora(shape: FluxShape, constants: MemoryModel = PUBLISHED) -> Estimate:
    """Estimate the GPU memory of a FLUX LoRA job."""
    weights: float = _FLUX * shape.weight_bytes
    if shape.quantization is not None:
        saved = shape.weight_bytes - _QUANTIZED_BYTES[shape.quantization]
        weights -= _FLUX_LINEARS * saved
    encoders = (_T5 + _CLIP_L) * shape.weight_bytes
    if shape.weight_dtype == "float16":
        encoders += _T5_OUT * 2
    return _estimate(
        shape,
        weights=weights,
        encoders=encoders,
        caption_bytes=shape.text_tokens * _T5_TOKEN_BYTES * shape.weight_bytes / 2,
        trained=flux_lora_parameters(shape),
        step=lambda model: _flux_step(shape, model),
        overhead="flux_overhead_bytes",
        constants=constants,
    )


def estimate_sdxl(shape: SdxlShape, constants: MemoryModel = PUBLISHED) -> Estimate:
    """Estimate the GPU memory of an SDXL job."""
    return _estimate(
        shape,
        weights=0.0 if shape.trains_unet else _UNET * shape.weight_bytes,
        encoders=(_CLIP_L + _CLIP_G) * shape.weight_bytes,
        caption_bytes=0.0,
        trained=_UNET * shape.trains_unet + sdxl_lora_parameters(shape),
        step=lambda model: _sdxl_step(shape, model),
        overhead="sdxl_overhead_bytes",
        constants=constants,
        weight_copies=shape.weight_copies,
    )


def flux_lora_parameters(shape: FluxShape) -> int:
    """Return the trained weights of a FLUX LoRA."""
    kinds = ((_DOUBLE_BLOCKS, FLUX_DOUBLE_LAYERS), (_SINGLE_BLOCKS, FLUX_SINGLE_LAYERS))
    widths = sum(
        blocks * sum(layers[name])
        for blocks, layers in kinds
        for name in shape.layers & layers.keys()
    )
    clip = CLIP_DEPTHS[0] * sum(CLIP_LAYERS[name][0] for name in shape.clip_layers)
    return shape.rank * (widths * _WIDTH + clip)


def sdxl_lora_parameters(shape: SdxlShape) -> int:
    """Return the trained weights of an SDXL LoRA."""
    unet = sum(UNET_LAYERS[name][0] for name in shape.layers)
    clips = sum(
        depth * size
        for name in shape.clip_layers
        for depth, size in zip(CLIP_DEPTHS, CLIP_LAYERS[name], strict=True)
    )
    return shape.rank * (unet + clips)


def _estimate(
    shape: RunShape,
    *,
    weights: float,
    encoders: float,
    caption_bytes: float,
    trained: float,
    step: Callable[[MemoryModel], dict[str, float]],
    overhead: str,
    constants: MemoryModel,
    weight_copies: int = 0,
) -> Estimate:
    """Add up what stays on the card, and the phase that takes most beside it.

    Args:
        shape: The options.
        weights: Bytes of the frozen denoiser.
        encoders: Bytes of both text encoders.
        caption_bytes: Activations of the text encoders for a caption, without gradients.
        trained: The number of trained weights.
        step: Returns the bytes of the phases of a forward and backward pass, without gradients;
            ``end`` is when the last ones are made.
        overhead: The constant that is the overhead.
        constants: The constants.
        weight_copies: Further copies of the trained weights.
    """
    resident = {
        "weights": weights + _VAE_BYTES * shape.vae_resident,
        "text_encoders": encoders * shape.text_encoders_resident,
        "adapters": trained * 4 * (1 + weight_copies),
        "optimizer": trained * shape.optimizer_bytes,
    }
    gradients = 4.0 * trained
    kept = gradients * shape.accumulates
    # A LoRA's weights in half precision, until their gradients are made.
    casts = trained * shape.compute_bytes if shape.rank and shape.compute_bytes < 4 else 0.0
    others: dict[str, float] = {}
    if shape.vae_resident:
        others["encode"] = kept + shape.pixels * _ENCODE_PIXEL_BYTES
    if shape.validation_pixels:
        vae = _VAE_BYTES * (not shape.vae_resident)
        others["validate"] = vae + shape.validation_pixels * _DECODE_PIXEL_BYTES
    # The cache stage has one encoder on the card, and nothing of the training.
    alone = -sum(resident.values())
    if not shape.vae_resident:
        together = max(1, min(8, _CACHED_PIXELS // shape.pixels)) * shape.pixels
        others["cache images"] = alone + _VAE_BYTES + together * _ENCODE_PIXEL_BYTES
    if not shape.text_encoders_resident:
        others["cache captions"] = alone + encoders + _CAPTIONS * caption_bytes

    def phases(model: MemoryModel) -> dict[str, float]:
        passes = step(model)
        end = {"end": gradients + passes.pop("end")}
        return others | end | {name: kept + casts + size for name, size in passes.items()}

    # The phase is that of the published constants: an estimate stays linear in the constants.
    published = phases(PUBLISHED)
    activations = phases(constants)[max(published, key=published.__getitem__)]
    parts = {
        **resident,
        "activations": max(0.0, activations),
        "overhead": getattr(constants, overhead),
    }
    return Estimate(**{f"{name}_gib": size / GIB for name, size in parts.items()})


def _flux_step(shape: FluxShape, model: MemoryModel) -> dict[str, float]:
    """Return the bytes of the phases of a forward and backward pass, without gradients."""
    image = shape.pixels / 256  # 2x2 patches of latents of 8x8 pixels
    tokens = image + shape.text_tokens
    # Inputs of layers with a LoRA; some layers of a double block see the text or the image only.
    double = sum(
        widths * (shape.text_tokens if _is_of_text(name) else image)
        for name, widths in _inputs(shape.layers, FLUX_DOUBLE_LAYERS).items()
    )
    single = tokens * sum(_inputs(shape.layers, FLUX_SINGLE_LAYERS).values())
    recomputed = shape.checkpointed_blocks
    whole_double = max(0, _DOUBLE_BLOCKS - recomputed)
    whole = FLUX_BLOCKS - recomputed
    inputs = whole_double * double + (whole - whole_double) * single
    if shape.compute_dtype == "float16":
        # The residual stream, which is clipped to float16's range.
        inputs += whole_double * shape.text_tokens + (whole - whole_double) * tokens
    unit = shape.batch_size * _WIDTH * shape.compute_bytes * shape.uncast_share
    stored = shape.batch_size * _WIDTH * shape.compute_bytes * recomputed * tokens
    casts = 0.0
    if shape.casts_weights and shape.quantization is None:
        # No gradient passes through the modulations.
        casts = (_FLUX_LINEARS - _FLUX_MODULATIONS) * shape.compute_bytes * whole / FLUX_BLOCKS
    found = {"forward": stored + casts + unit * (whole * tokens * model.flux_kept_copies + inputs)}
    block = tokens * model.flux_recomputed_copies + max(double, single)
    if recomputed:
        found["recompute"] = stored + unit * block
    return found | {"end": unit * block}


def _inputs(layers: frozenset[str], known: dict[str, tuple[int, int]]) -> dict[str, int]:
    """Return the widths of the inputs of a block's layers, by input."""
    return {_INPUTS.get(name, name): known[name][0] for name in layers & known.keys()}


def _is_of_text(name: str) -> bool:
    return "add_" in name or "context" in name


def _sdxl_step(shape: SdxlShape, model: MemoryModel) -> dict[str, float]:
    """Return the bytes of the phases of a forward and backward pass, without gradients."""
    layers = UNET_LAYERS.keys() if shape.trains_unet else shape.layers
    inputs = 2 * sum({_INPUTS.get(name, name): UNET_LAYERS[name][1] for name in layers}.values())
    captions = 2 * sum(_UNET_TEXT_INPUTS for name in layers if name in _UNET_TEXT_LAYERS)
    if shape.trains_unet:
        inputs, captions = inputs * _UNET_INPUTS_SHARE, 0
    recomputed = shape.checkpointed_blocks
    whole, stored = sum(_KEPT_SHARES[recomputed:]), sum(_STORED_SHARES[:recomputed])
    stored_inputs = (1 - whole) * _STORED_INPUTS_SHARE * inputs
    pixel = whole * (model.sdxl_pixel_bytes + inputs) + stored_inputs
    pixel += stored * model.sdxl_checkpointed_pixel_bytes
    unit = shape.batch_size * shape.compute_bytes / 2 * shape.uncast_share
    text = 0.0
    if shape.trains_embeddings:
        text = unit * _CLIP_BYTES
    elif shape.clip_layers and not recomputed:
        text = unit * _CLIP_LORA_BYTES
    casts = 0.0
    if shape.trains_unet and shape.compute_bytes < 4:
        casts = _UNET * shape.compute_bytes
    elif shape.casts_weights:
        casts = _UNET * shape.compute_bytes * whole
    found = {"forward": unit * (shape.pixels * pixel + whole * captions) + text + casts}
    if recomputed == UNET_BLOCKS:
        # With fewer, the last blocks' activations take more.
        pixel = model.sdxl_checkpointed_pixel_bytes + stored_inputs
        found["recompute"] = unit * shape.pixels * pixel + text
    return found | {"end": unit * shape.pixels * _UNET_END_PIXEL_BYTES}
