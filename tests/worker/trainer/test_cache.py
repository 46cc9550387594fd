from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.events import CacheDone, Progress
from tests.worker.trainer.runs import (
    BUCKETS,
    CACHED,
    Events,
    Pictures,
    config_of,
    request_of,
    run_cache,
    run_train,
)
from worker.trainer import cache
from worker.trainer.cache_entries import CacheIndex, Latents
from worker.trainer.errors import (
    DamagedFileError,
    InterruptedRun,
    NotFiniteError,
    RefusedError,
    StaleIndexError,
)
from worker.trainer.kept import KeptModels
from worker.trainer.pipe import StopSwitch


def counts(done: CacheDone) -> tuple[int, int, int, int]:
    return (
        done.encoded_images,
        done.encoded_captions,
        done.reused_images,
        done.reused_captions,
    )


def test_the_first_run_encodes_all_and_the_second_nothing(
    tiny_flux: Path, data: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tiny_flux, loader={"random_flip": True}, **CACHED)
    # Five captions and the blank one.
    assert counts(run_cache(data, config)) == (5, 6, 0, 0)

    def no_import(name: str) -> None:
        raise AssertionError(f"nothing is missing, and yet {name} is imported")

    monkeypatch.setattr("importlib.import_module", no_import)
    assert counts(run_cache(data, config)) == (0, 0, 5, 6)


def test_an_edited_image_encodes_one_image_and_an_edited_caption_one_caption(
    tiny_flux: Path, data: Pictures
) -> None:
    config = config_of(tiny_flux, loader={"aspect_ratio_buckets": BUCKETS}, **CACHED)
    run_cache(data, config)
    assert counts(run_cache(data.edited(image=2), config)) == (1, 0, 4, 6)
    assert counts(run_cache(data.edited(caption=1), config)) == (0, 1, 5, 5)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"t5_tokenizer_max_length": 16}, (0, 6)),
        ({"clip_tokenizer_max_length": 20}, (0, 6)),
        ({"weight_dtype": "bfloat16"}, (0, 6)),
        ({"loader": {"resolution": 32}}, (5, 0)),
        ({"loader": {"caption_prefix": "sks"}}, (0, 5)),
        ({"loader": {"random_flip": True}}, (5, 0)),
        ({"seed": 12, "lora_rank_dim": 2}, (0, 0)),
    ],
)
def test_only_what_depends_on_an_option_is_encoded_anew(
    tiny_flux: Path, data: Pictures, change: dict[str, Any], expected: tuple[int, int]
) -> None:
    run_cache(data, config_of(tiny_flux, **CACHED))
    done = run_cache(data, config_of(tiny_flux, **CACHED, **change))
    assert (done.encoded_images, done.encoded_captions) == expected


def test_equal_encoders_in_another_folder_share_entries(
    tiny_flux: Path, double_flux: Path, data: Pictures
) -> None:
    run_cache(data, config_of(tiny_flux, **CACHED))
    # Both were built from one seed and differ in their transformers only.
    assert counts(run_cache(data, config_of(double_flux, **CACHED))) == (0, 0, 5, 6)


@pytest.mark.parametrize(("name", "images"), [("cache_vae_outputs", 5), ("other", 0)])
def test_a_kind_whose_flag_is_off_is_left_out(
    tiny_flux: Path, data: Pictures, name: str, images: int
) -> None:
    flag = name if images else "cache_text_encoder_outputs"
    done = run_cache(data, config_of(tiny_flux, **{flag: True}))
    assert counts(done) == ((5, 0, 0, 0) if images else (0, 6, 0, 0))
    index = CacheIndex.model_validate_json(data.store.get(done.index_key))
    assert all((entry.latents is None) != bool(images) for entry in index.samples)
    assert all((entry.text is None) == bool(images) for entry in index.samples)


def test_cached_training_equals_uncached(tiny_flux: Path, data: Pictures) -> None:
    options: dict[str, Any] = {
        "loader": {
            "aspect_ratio_buckets": BUCKETS,
            "random_flip": True,
            "caption_prefix": "a drawing,",
        },
        "max_train_steps": 6,
        "train_batch_size": 2,
    }
    cached = run_train(data, config_of(tiny_flux, **CACHED, **options))
    live = run_train(data, config_of(tiny_flux, **options), attempt=2)
    assert cached.losses == pytest.approx(live.losses, rel=1e-5)
    for name, tensor in live.state.items():
        if name.startswith("weights/"):
            torch.testing.assert_close(cached.state[name], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["text", "latents"])
@pytest.mark.parametrize("damage", ["truncated", "another entry"])
def test_a_damaged_entry_is_made_anew_by_cache_and_refused_by_train(
    tiny_flux: Path, data: Pictures, kind: str, damage: str
) -> None:
    config = config_of(tiny_flux, max_train_steps=5, **CACHED)
    done = run_cache(data, config)
    entries = CacheIndex.model_validate_json(data.store.get(done.index_key)).samples[0]
    keys = {"text": str(entries.text), "latents": str(entries.latents)}
    key = keys.pop(kind)
    whole = data.store.get(key)
    (other,) = keys.values()
    data.store.put(key, whole[:200] if damage == "truncated" else data.store.get(other))
    with pytest.raises(DamagedFileError, match="run the cache stage again"):
        run_train(data, config, cache_index_key=done.index_key)
    data.store.put(key, b"damaged")
    again = run_cache(data, config)
    assert again.encoded_images + again.encoded_captions == 1
    assert data.store.get(key) == whole


def test_progress_counts_what_is_encoded(tiny_flux: Path, data: Pictures) -> None:
    events = Events()
    config = config_of(tiny_flux, **CACHED)
    cache.run(request_of(data, "cache", config), events.append, StopSwitch(), KeptModels())
    last = {event.unit: event for event in events.of(Progress)}
    assert (last["captions"].done, last["captions"].total) == (6, 6)
    assert (last["images"].done, last["images"].total) == (5, 5)


def test_a_stop_keeps_what_is_encoded(tiny_flux: Path, data: Pictures) -> None:
    config = config_of(tiny_flux, **CACHED)
    stop = StopSwitch()
    stop.waits_for_request = False
    with pytest.raises(InterruptedRun):
        cache.run(request_of(data, "cache", config), stop, stop, KeptModels())
    assert counts(run_cache(data, config)) == (5, 5, 0, 1)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"t5_tokenizer_max_length": 16}, "t5_tokenizer_max_length"),
        ({"loader": {"caption_prefix": "sks"}}, "caption_prefix"),
        ({"loader": {"random_flip": True}}, "random_flip"),
    ],
)
def test_an_index_of_another_config_is_refused_by_the_names_of_what_differs(
    tiny_flux: Path, data: Pictures, change: dict[str, Any], name: str
) -> None:
    key = run_cache(data, config_of(tiny_flux, **CACHED)).index_key
    with pytest.raises(StaleIndexError, match=name):
        run_train(data, config_of(tiny_flux, **CACHED, **change), cache_index_key=key)


def test_an_index_of_another_data_set_is_refused(tiny_flux: Path, data: Pictures) -> None:
    config = config_of(tiny_flux, **CACHED)
    key = run_cache(data, config).index_key
    with pytest.raises(StaleIndexError, match="data set"):
        run_train(data.edited(image=0), config, cache_index_key=key)


def test_training_from_a_cache_without_an_index_is_refused(tiny_flux: Path, data: Pictures) -> None:
    with pytest.raises(RefusedError, match="no cache index"):
        run_train(data, config_of(tiny_flux, **CACHED), cache_index_key=None)


def test_encodings_that_are_no_numbers_are_refused(
    tiny_flux: Path, data: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The tiny VAE cannot overflow by itself.
    def not_finite(*_: Any) -> Any:
        return Latents(torch.full((1, 16, 8, 8), torch.nan), torch.zeros(1, 16, 8, 8))

    monkeypatch.setattr("worker.trainer.inputs.encode_pixels", not_finite)
    with pytest.raises(NotFiniteError, match=r"picture-\d.png"):
        run_cache(data, config_of(tiny_flux, cache_vae_outputs=True))
    assert data.store.keys("cache/latents") == []
