"""Routes of whole jobs: any preset, any options over it, any calibration."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.classes import MemoryClass
from routing.estimate import PUBLISHED, MemoryModel
from routing.policy import AUTO_SHARE, FLOOR_CLASS, TrainingType
from tasks.errors import DoesNotFitJobError, InvalidJobError
from tasks.jobs.job import TrainingJob, parse_job
from tasks.jobs.presets import preset_names
from tests.routing.shapes import CONSTANTS

FLUX_PRESETS = [name for name in preset_names() if name.startswith("flux")]
DATASET = {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": "/images"}
LOADER = st.fixed_dictionaries(
    {
        "dataset": st.just(DATASET),
        "resolution": st.sampled_from([256, 512, 768, 1024, [512, 1024]]),
        "aspect_ratio_buckets": st.none(),
    },
)
OPTIMIZERS = st.sampled_from(["AdamW", "Prodigy", "Adafactor"]).map(
    lambda name: {"optimizer_type": name}
) | st.just({"optimizer_type": "AdamW", "use_8bit": True})
# Of FLUX's options, all that act on memory.
OVERRIDES: dict[str, st.SearchStrategy[Any]] = {
    "train_batch_size": st.integers(1, 8),
    "lora_rank_dim": st.integers(1, 256),
    "weight_dtype": st.sampled_from(["float32", "float16", "bfloat16"]),
    "quantization": st.sampled_from([None, "fp8", "int8", "nf4"]),
    "gradient_checkpointing": st.booleans() | st.just("auto") | st.integers(0, 57),
    "cache_text_encoder_outputs": st.booleans(),
    "cache_vae_outputs": st.booleans(),
    "flux_lora_target_modules": st.sampled_from([["to_q"], ["attn.to_q", "proj_mlp"]]),
    "optimizer": OPTIMIZERS,
}
FLUX_JOBS = st.fixed_dictionaries(
    {
        "training": st.fixed_dictionaries(
            {"max_train_steps": st.just(9), "data_loader": LOADER}, optional=OVERRIDES
        ),
        "preset": st.sampled_from(FLUX_PRESETS),
    }
)


@given(FLUX_JOBS, CONSTANTS | st.just(PUBLISHED))
def test_flux_never_goes_below_40_gb(document: dict[str, Any], constants: MemoryModel) -> None:
    job = parse_job(document)
    try:
        route = job.route(constants)
    except DoesNotFitJobError:
        needed_gib = job.training.estimate(constants).needed_gib
        assert needed_gib > MemoryClass.GB80.floor_gib
        return
    assert route.gpu_queue in ("gpu.40gb", "gpu.80gb")
    assert route.memory_class.floor_gib >= route.estimate.needed_gib


@pytest.mark.parametrize("name", ["queue", "gpu_queue", "memory_class", "pool", "gpu_memory"])
@given(FLUX_JOBS, st.sampled_from(["8gb", "gpu.24gb", 24]))
def test_no_option_selects_a_smaller_gpu(name: str, document: dict[str, Any], value: Any) -> None:
    for place in (document, document["training"]):
        place[name] = value
        with pytest.raises(InvalidJobError, match="is not an option"):
            parse_job(document)
        del place[name]


@given(FLUX_JOBS, st.sampled_from(["acme", "8gb"]), st.integers(0, 9))
def test_tenant_and_priority_do_not_change_the_route(
    document: dict[str, Any], tenant: str, priority: int
) -> None:
    theirs = parse_job({**document, "tenant": tenant, "priority": priority})
    mine = parse_job(document)
    try:
        expected = mine.route()
    except DoesNotFitJobError:
        with pytest.raises(DoesNotFitJobError):
            theirs.route()
        return
    assert theirs.route() == expected


@pytest.mark.parametrize("name", preset_names())
@given(constants=CONSTANTS)
def test_no_calibration_moves_a_preset_below_its_floor(name: str, constants: MemoryModel) -> None:
    training: dict[str, Any] = {"data_loader": {"dataset": DATASET}}
    if "inversion" in name:
        word = {"placeholder_token": "<cat>", "initializer_token": "cat"}
        loader = {"dataset": {**DATASET, "type": "IMAGE_DIR_DATASET"}, "caption_preset": "object"}
        training = {**word, "data_loader": loader}
    job = parse_job({"preset": name, "training": training})
    try:
        route = job.route(constants)
    except DoesNotFitJobError:
        return
    assert route.memory_class >= FLOOR_CLASS[TrainingType(job.training.type)]
    assert route.memory_class.floor_gib >= route.estimate.needed_gib


@given(FLUX_JOBS, CONSTANTS | st.just(PUBLISHED))
def test_auto_recomputes_the_fewest_blocks_that_fit_its_class(
    document: dict[str, Any], constants: MemoryModel
) -> None:
    def job_with(blocks: Any) -> TrainingJob:
        training = {**document["training"], "gradient_checkpointing": blocks}
        return parse_job({**document, "training": training})

    try:
        full = job_with(True).route(constants)
    except DoesNotFitJobError:
        with pytest.raises(DoesNotFitJobError):
            job_with("auto").route(constants)
        return
    route, training = job_with("auto").route(constants), job_with(True).training
    needed_gib = [
        training.model_copy(update={"gradient_checkpointing": n}).estimate(constants).needed_gib
        for n in range(58)
    ]
    fits = [needed <= AUTO_SHARE * full.memory_class.floor_gib for needed in needed_gib]
    assert route.memory_class == full.memory_class
    assert route.checkpointed_blocks == (fits.index(True) if any(fits) else 57)
    assert route.estimate.needed_gib == needed_gib[route.checkpointed_blocks]
    assert f"auto recomputes {route.checkpointed_blocks} of 57 there" in route.reason


def test_job_that_fits_nowhere_names_the_savings_that_are_left() -> None:
    def advice(**options: Any) -> str:
        training = {"data_loader": {"dataset": DATASET}, "train_batch_size": 60, **options}
        with pytest.raises(DoesNotFitJobError) as refused:
            parse_job({"preset": "flux_lora_1x40gb", "training": training}).route()
        return str(refused.value).rpartition("; set ")[2]

    smaller = "a smaller train_batch_size or a smaller resolution"
    assert advice() == advice(gradient_checkpointing="auto") == smaller
    assert advice(gradient_checkpointing=30) == f"gradient_checkpointing true or {smaller}"
    live = {"cache_text_encoder_outputs": False}
    assert advice(**live) == f"cache_text_encoder_outputs true or {smaller}"
    assert advice(**live, train_text_encoder=True) == smaller


@pytest.mark.parametrize(("name", "blocks"), [("flux_lora_1x40gb", 57), ("sdxl_lora_1x24gb", 7)])
def test_gradient_checkpointing_has_four_strict_forms(name: str, blocks: int) -> None:
    def checkpointed(value: Any) -> int:
        training = {"data_loader": {"dataset": DATASET}, "gradient_checkpointing": value}
        return parse_job({"preset": name, "training": training}).training.checkpointed_blocks

    # JSON's 1 is no truth value.
    valid: list[tuple[Any, int]] = [
        (False, 0),
        (0, 0),
        (1, 1),
        (blocks, blocks),
        (True, blocks),
        ("auto", blocks),
    ]
    assert [checkpointed(value) for value, _ in valid] == [number for _, number in valid]
    message = rf"must be true, false, 'auto' or the number of blocks.*, 0 to {blocks} "
    refused: list[Any] = ["yes", "true", "1", "AUTO", 1.0, 1.5, -1, blocks + 1, 10**30, None, {}]
    for value in refused:
        with pytest.raises(InvalidJobError, match=rf"gradient_checkpointing: {message}"):
            checkpointed(value)
