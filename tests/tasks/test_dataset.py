import random

from hypothesis import given
from hypothesis import strategies as st

from tasks.dataset import Dataset, Sample, dataset_of

HEX = st.text("0123456789abcdef", min_size=64, max_size=64)
SAMPLES = st.lists(
    st.builds(
        Sample,
        image=HEX,
        width=st.integers(1, 9999),
        height=st.integers(1, 9999),
        caption=st.text(st.characters(codec="utf-8"), min_size=1),
        source=st.text(min_size=1),
    ),
    max_size=6,
)


def sample(image: str = "a" * 64, caption: str = "a lamp", source: str = "lamp.png") -> Sample:
    return Sample(image=image, width=64, height=48, caption=caption, source=source)


@given(SAMPLES, st.randoms(use_true_random=False))
def test_a_digest_does_not_depend_on_the_order(samples: list[Sample], draws: random.Random) -> None:
    shuffled = draws.sample(samples, len(samples))
    assert dataset_of(shuffled).digest == dataset_of(samples).digest


def test_a_digest_does_not_depend_on_file_names() -> None:
    assert dataset_of([sample(source="b.bmp")]).digest == dataset_of([sample()]).digest


@given(SAMPLES, SAMPLES)
def test_other_images_or_captions_have_another_digest(
    some: list[Sample], others: list[Sample]
) -> None:
    def contents(samples: list[Sample]) -> list[tuple[str, str]]:
        return sorted((s.image, s.caption) for s in samples)

    same = contents(some) == contents(others)
    assert (dataset_of(some).digest == dataset_of(others).digest) is same


def test_two_captions_differ_from_their_concatenation() -> None:
    second = sample(image="b" * 64, caption="two")
    forged = sample(caption=f"one\n{second.image} 3 two")
    assert dataset_of([sample(caption="one"), second]).digest != dataset_of([forged]).digest


@given(SAMPLES)
def test_a_dataset_round_trips_through_json(samples: list[Sample]) -> None:
    dataset = dataset_of(samples)
    assert Dataset.model_validate_json(dataset.model_dump_json()) == dataset


def test_a_samples_size_is_its_width_and_height() -> None:
    assert str(sample().size) == "64x48"
