import itertools
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tasks.buckets import Size
from tasks.dataset import Sample, dataset_of
from tasks.store import Store, image_key
from tests.tasks.data.hostile import encoded
from tests.tasks.data.profiles import DISPLAY_P3
from tests.worker.trainer.runs import BUCKETS, Images, config_of
from worker.trainer.data.batches import Batch, BatchPlan, SampleReader, TrainingData
from worker.trainer.errors import ImageError
from worker.trainer.rng import StatelessRng

SIZES = st.lists(
    st.sampled_from([Size(64, 64), Size(96, 32), Size(32, 96)]), min_size=1, max_size=30
)


@settings(deadline=None)
@given(SIZES, st.integers(1, 4), st.integers(1, 4), st.integers(0, 5))
def test_epoch_has_each_sample_once_in_batches_of_one_size(
    sizes: list[Size], batch_size: int, accumulation: int, epoch: int
) -> None:
    plan = BatchPlan(sizes, batch_size, accumulation, StatelessRng(1))
    batches = plan.epoch(epoch)
    assert Counter(sample for batch in batches for sample in batch) == Counter(range(len(sizes)))
    for batch in batches:
        assert 1 <= len(batch) <= batch_size
        assert len({sizes[sample] for sample in batch}) == 1
    incomplete = Counter(sizes[batch[0]] for batch in batches if len(batch) < batch_size)
    assert all(count == 1 for count in incomplete.values())


@settings(deadline=None)
@given(SIZES, st.integers(1, 4), st.integers(1, 4), st.integers(0, 3))
def test_steps_take_the_batches_of_their_epoch_in_order(
    sizes: list[Size], batch_size: int, accumulation: int, epoch: int
) -> None:
    plan = BatchPlan(sizes, batch_size, accumulation, StatelessRng(1))
    first = epoch * plan.steps_per_epoch
    numbers = [plan.of_step(step) for step in range(first, first + plan.steps_per_epoch)]
    assert numbers[0][0] == epoch * plan.batches_per_epoch
    assert numbers[-1][1] == (epoch + 1) * plan.batches_per_epoch
    assert all(end == start for (_, end), (start, _) in itertools.pairwise(numbers))
    assert all(1 <= end - start <= accumulation for start, end in numbers)
    assert {plan.batch(number)[0] for number in range(*numbers[-1])} == {epoch}


def test_order_depends_on_seed_and_epoch_only() -> None:
    sizes = [Size(64, 64)] * 20

    def order(seed: int, epoch: int) -> Any:
        return BatchPlan(sizes, 2, 1, StatelessRng(seed)).epoch(epoch)

    assert order(1, 3) == order(1, 3)
    assert order(1, 3) != order(1, 4)
    assert order(1, 3) != order(2, 3)


def data_of(data: Images, workers: int = 0, **loader: Any) -> TrainingData:
    config = config_of("unused", loader=loader)
    draws = StatelessRng(7)
    reader = SampleReader(data.store.url, data.dataset, config, None, draws)
    plan = BatchPlan(reader.sizes, 2, 1, draws)
    return TrainingData(reader, plan, data.dataset, workers, torch.device("cpu"))


def same(one: Batch, other: Batch) -> bool:
    assert one.pixels is not None
    assert other.pixels is not None
    return (
        one.samples == other.samples
        and one.captions == other.captions
        and torch.equal(one.pixels, other.pixels)
    )


@pytest.mark.timeout(120)
def test_number_of_workers_does_not_change_batches(data: Images) -> None:
    loader: dict[str, Any] = {
        "aspect_ratio_buckets": BUCKETS,
        "random_flip": True,
        "center_crop": False,
    }
    alone = list(data_of(data, **loader).batches(0, 6))
    together = list(data_of(data, workers=2, **loader).batches(0, 6))
    assert len(alone) == 6
    assert all(same(one, other) for one, other in zip(alone, together, strict=True))


def test_batches_start_in_the_middle_of_an_epoch(data: Images) -> None:
    loader: dict[str, Any] = {"random_flip": True, "center_crop": False}
    whole = list(data_of(data, **loader).batches(0, 9))
    rest = list(data_of(data, **loader).batches(4, 9))
    assert all(same(one, other) for one, other in zip(whole[4:], rest, strict=True))


def test_images_kept_in_memory_change_nothing(data: Images) -> None:
    kept: dict[str, Any] = {
        "dataset": {
            "type": "IMAGE_CAPTION_DIR_DATASET",
            "dataset_dir": "/unused",
            "keep_in_memory": True,
        }
    }
    plain = list(data_of(data).batches(0, 6))
    source = data_of(data, **kept)
    first = list(source.batches(0, 3))
    data.store.delete(data.store.keys("images"))
    second = list(source.batches(3, 6))
    assert all(same(one, other) for one, other in zip(plain, first + second, strict=True))


def test_flips_and_crops_change_from_epoch_to_epoch(data: Images) -> None:
    def seen(**loader: Any) -> int:
        batches = data_of(data, **loader).batches(0, 3 * 8)
        images = [
            (sample, batch.pixels[row].numpy().tobytes())
            for batch in batches
            for row, sample in enumerate(batch.samples)
            if batch.pixels is not None
        ]
        return len(set(images))

    assert seen() == 5
    assert 5 < seen(random_flip=True) <= 10
    # The square image has one crop only, the others have a few.
    assert seen(center_crop=False) > 10


def test_caption_prefix_precedes_every_caption(data: Images) -> None:
    (batch,) = data_of(data, caption_prefix="a drawing of").batches(0, 1)
    assert all(caption.startswith("a drawing of ") for caption in batch.captions)


def test_trigger_word_precedes_captions_without_it_but_blank_ones(data: Images) -> None:
    config = config_of("unused", trigger_word="sks", loader={"caption_dropout": 0.5})
    reader = SampleReader(data.store.url, data.dataset, config, None, StatelessRng(7))
    captions = {it for epoch in range(4) for it in reader.read(epoch, (0, 1)).captions}
    assert "" in captions
    assert captions - {""} <= {f"sks, {sample.caption}" for sample in data.dataset.samples}


def test_unreadable_image_is_named_when_due_and_the_thread_ends(data: Images) -> None:
    source = data_of(data)
    [(bad, *_)] = source.plan.samples_of_step(1)
    sample = data.dataset.samples[bad]
    data.store.put(image_key(sample.image), b"no image")
    batches = source.batches(0, 3)
    assert next(batches).samples == source.plan.samples_of_step(0)[0]
    assert readers()
    with pytest.raises(ImageError, match=sample.source):
        next(batches)
    assert not readers()


def test_closed_batches_leave_no_thread(data: Images) -> None:
    batches = data_of(data).batches(0, 9)
    next(batches)
    assert readers()
    batches.close()
    assert not readers()


def readers() -> list[str]:
    return [it.name for it in threading.enumerate() if it.name.startswith("batches")]


def test_profiles_and_alpha_of_masks_are_trained(tmp_path: Path) -> None:
    store = Store(f"file://{tmp_path}/store")
    cut_out = Image.new("RGBA", (128, 128), (255, 255, 255, 0))
    cut_out.paste((9, 9, 9, 255), (32, 32, 96, 96))
    store.put(image_key("mask"), encoded(cut_out, "PNG"))
    red = Image.new("RGB", (128, 128), (200, 60, 60))
    store.put(image_key("image"), encoded(red, "PNG", icc_profile=DISPLAY_P3))
    sample = Sample(
        image="image", width=128, height=128, caption="red", source="red.png", mask="mask"
    )
    jsonl = {"type": "IMAGE_CAPTION_JSONL_DATASET", "jsonl_path": "/unused"}
    config = config_of("unused", use_masks=True, loader={"dataset": jsonl})
    reader = SampleReader(store.url, dataset_of([sample]), config, None, StatelessRng(7))
    batch = reader.read(0, (0,))
    assert batch.masks is not None
    assert batch.pixels is not None
    assert batch.masks.mean().item() == pytest.approx(0.25, abs=1e-3)
    assert batch.masks[0, 0, 4, 4] == 1
    assert batch.masks[0, 0, 0, 0] == 0
    color = (batch.pixels[0, :, 0, 0] + 1) * 127.5
    assert color.tolist() == pytest.approx([219, 37, 49], abs=1.5)


def test_resolution_is_height_then_width(data: Images) -> None:
    (batch,) = data_of(data, resolution=[32, 96]).batches(0, 1)
    assert batch.pixels is not None
    assert batch.pixels.shape[1:] == (3, 32, 96)
