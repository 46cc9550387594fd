from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.cache.packs import DamagedPackError, read_header, verify_pack
from tasks.cache.plan import CacheIndex, CachePlan, encoder_digests
from tasks.events import CacheDone, Event, PackStored
from tests.worker.trainer.runs import (
    BUCKETS,
    CACHED,
    Cached,
    Events,
    Images,
    config_of,
    request_of,
    run_cache,
    run_train,
    sdxl_config_of,
)
from worker.trainer import cache
from worker.trainer.data.cache_entries import Latents
from worker.trainer.errors import (
    DamagedFileError,
    InterruptedRun,
    NotFiniteError,
    RefusedError,
    StaleIndexError,
)
from worker.trainer.event_pipe import StopSwitch
from worker.trainer.model_cache import ModelCache


def counts(done: Cached) -> tuple[int, int, int, int]:
    return (
        done.encoded_images,
        done.encoded_captions,
        done.reused_images,
        done.reused_captions,
    )


def test_second_run_encodes_nothing(
    tiny_flux: Path, data: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tiny_flux, loader={"random_flip": True}, **CACHED)
    # Five captions and the blank one.
    assert counts(run_cache(data, config)) == (5, 6, 0, 0)

    def no_import(name: str) -> None:
        raise AssertionError(f"nothing is missing, and yet {name} is imported")

    monkeypatch.setattr("importlib.import_module", no_import)
    assert counts(run_cache(data, config)) == (0, 0, 5, 6)


def test_edit_encodes_only_what_was_edited(tiny_flux: Path, data: Images) -> None:
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
        ({"trigger_word": "sks"}, (0, 5)),
        ({"loader": {"random_flip": True}}, (5, 0)),
        ({"seed": 12, "lora_rank_dim": 2}, (0, 0)),
    ],
)
def test_option_reencodes_only_what_depends_on_it(
    tiny_flux: Path, data: Images, change: dict[str, Any], expected: tuple[int, int]
) -> None:
    run_cache(data, config_of(tiny_flux, **CACHED))
    done = run_cache(data, config_of(tiny_flux, **CACHED, **change))
    assert (done.encoded_images, done.encoded_captions) == expected


def test_equal_encoders_in_other_folders_share_entries(
    tiny_flux: Path, double_flux: Path, data: Images
) -> None:
    run_cache(data, config_of(tiny_flux, **CACHED))
    # Both models have the same seed and differ in their transformers only.
    assert counts(run_cache(data, config_of(double_flux, **CACHED))) == (0, 0, 5, 6)


@pytest.mark.parametrize(("name", "images"), [("cache_vae_outputs", 5), ("other", 0)])
def test_kind_without_caching_is_left_out(
    tiny_flux: Path, data: Images, name: str, images: int
) -> None:
    flag = name if images else "cache_text_encoder_outputs"
    done = run_cache(data, config_of(tiny_flux, **{flag: True}))
    assert counts(done) == ((5, 0, 0, 0) if images else (0, 6, 0, 0))
    index = index_of(data, done)
    assert all((entry.latents is None) != bool(images) for entry in index.samples)
    assert all((entry.text is None) == bool(images) for entry in index.samples)


def test_cached_training_equals_uncached(tiny_flux: Path, data: Images) -> None:
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
    live = run_train(data, config_of(tiny_flux, **options), start_id="2")
    assert cached.losses == pytest.approx(live.losses, rel=1e-5)
    for name, tensor in live.state.items():
        if name.startswith("weights/"):
            torch.testing.assert_close(cached.state[name], tensor, rtol=1e-3, atol=1e-5)


def index_of(data: Images, cached: Cached) -> CacheIndex:
    return CacheIndex.model_validate_json(data.store.get(cached.index_key))


@pytest.mark.parametrize("kind", ["text", "latents"])
@pytest.mark.parametrize("damage", ["truncated", "another pack", "one bit", "gone"])
def test_damaged_pack_is_reported_and_remade_bit_for_bit(
    tiny_flux: Path, data: Images, kind: str, damage: str
) -> None:
    config = config_of(tiny_flux, max_train_steps=len(data.dataset.samples), **CACHED)
    done = run_cache(data, config)
    index = index_of(data, done)
    digests = {"text": str(index.samples[0].text), "latents": str(index.samples[0].latents)}
    digest = digests.pop(kind)
    key = index.packs[digest]
    whole, end = data.store.get(key), read_header(data.store, key)[digest].end
    (other,) = digests.values()
    data.store.put(
        key,
        {
            "truncated": whole[: end - 200],
            "another pack": data.store.get(index.packs[other]),
            "one bit": whole[: end - 1] + bytes([whole[end - 1] ^ 1]) + whole[end:],
            "gone": b"",
        }[damage],
    )
    if damage == "gone":
        data.store.delete([key])
    with pytest.raises(DamagedPackError):
        verify_pack(data.store, key)
    with pytest.raises(DamagedFileError, match="run the cache stage again"):
        run_train(data, config, cache_index_key=done.index_key)
    data.store.delete([key])
    run_cache(data, config)
    assert data.store.get(key) == whole


@pytest.mark.parametrize("kind", ["FLUX_LORA", "SDXL_LORA"])
def test_entry_does_not_depend_on_its_batch(
    tiny_flux: Path, tiny_sdxl: Path, data: Images, kind: str
) -> None:
    frozen = {"train_text_encoder": False, **CACHED}
    config = (
        config_of(tiny_flux, **CACHED)
        if kind == "FLUX_LORA"
        else sdxl_config_of(kind, tiny_sdxl, **frozen)
    )
    encoders = encoder_digests(config)
    plan = CachePlan(config, data.dataset, encoders)

    def made(digests: list[str]) -> dict[str, str]:
        request = request_of(data, "cache", config, encoders=encoders, cache_entries=tuple(digests))
        events = Events()
        cache.run(request, events.append, StopSwitch(), ModelCache())
        return {
            digest: entry.sha256
            for event in events.of(PackStored)
            for digest, entry in read_header(data.store, event.key).items()
        }

    together = made(plan.digests)
    assert len(together) == 11
    assert made(plan.digests[::-1]) == together
    for digest in (plan.digests[0], plan.digests[3], plan.digests[-1]):
        assert made([digest])[digest] == together[digest]


def test_missing_encoder_digests_are_reported(tiny_flux: Path, data: Images) -> None:
    config = config_of(tiny_flux, **CACHED)
    events = Events()
    cache.run(request_of(data, "cache", config), events.append, StopSwitch(), ModelCache())
    assert events == [CacheDone(encoders=encoder_digests(config))]


def test_stop_keeps_encoded_entries(tiny_flux: Path, data: Images) -> None:
    config = config_of(tiny_flux, **CACHED)
    encoders = encoder_digests(config)
    digests = CachePlan(config, data.dataset, encoders).digests
    stop, events = StopSwitch(), Events()
    stop.waits_for_request = False
    stop()
    request = request_of(data, "cache", config, encoders=encoders, cache_entries=tuple(digests))
    with pytest.raises(InterruptedRun):
        cache.run(request, events.append, stop, ModelCache())
    assert events.of(PackStored) == []
    events.clear()

    def after_first(event: Event) -> None:
        events.append(event)
        if isinstance(event, PackStored):
            stop()

    stop = StopSwitch()
    stop.waits_for_request = False
    many = config_of(tiny_flux, loader={"random_flip": True, "resolution": 512}, **CACHED)
    digests = CachePlan(many, data.dataset, encoders).digests
    request = request_of(data, "cache", many, encoders=encoders, cache_entries=tuple(digests))
    with pytest.raises(InterruptedRun):
        cache.run(request, after_first, stop, ModelCache())
    stored = [digest for event in events.of(PackStored) for digest in event.entries]
    assert 0 < len(stored) < len(digests)
    again = run_cache(data, many)
    assert again.encoded_captions == 0


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"t5_tokenizer_max_length": 16}, "t5_tokenizer_max_length"),
        ({"loader": {"caption_prefix": "sks"}}, "caption_prefix"),
        ({"loader": {"random_flip": True}}, "random_flip"),
    ],
)
def test_index_of_another_config_is_refused_by_its_differences(
    tiny_flux: Path, data: Images, change: dict[str, Any], name: str
) -> None:
    key = run_cache(data, config_of(tiny_flux, **CACHED)).index_key
    with pytest.raises(StaleIndexError, match=name):
        run_train(data, config_of(tiny_flux, **CACHED, **change), cache_index_key=key)


def test_index_of_another_dataset_is_refused(tiny_flux: Path, data: Images) -> None:
    config = config_of(tiny_flux, **CACHED)
    key = run_cache(data, config).index_key
    with pytest.raises(StaleIndexError, match="dataset"):
        run_train(data.edited(image=0), config, cache_index_key=key)


def test_training_from_a_cache_without_an_index_is_refused(tiny_flux: Path, data: Images) -> None:
    with pytest.raises(RefusedError, match="no cache index"):
        run_train(data, config_of(tiny_flux, **CACHED), cache_index_key=None)


def test_encodings_with_nan_are_refused(
    tiny_flux: Path, data: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The tiny VAE cannot overflow by itself.
    def not_finite(*_: Any) -> Any:
        return Latents(torch.full((8, 16, 8, 8), torch.nan), torch.zeros(8, 16, 8, 8))

    monkeypatch.setattr("worker.trainer.data.inputs.encode_pixels", not_finite)
    with pytest.raises(NotFiniteError, match=r"image-\d.png"):
        run_cache(data, config_of(tiny_flux, cache_vae_outputs=True))
    assert data.store.keys("cache/latents") == []
