import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.buckets import Size, bucket_sizes, nearest_bucket

DIVISORS = st.sampled_from([16, 32, 64, 128])
SIZES = st.builds(Size, st.integers(1, 20000), st.integers(1, 20000))


@st.composite
def steps(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """Valid target_resolution, start_dim, end_dim and divisible_by."""
    divisor = draw(DIVISORS)
    target = divisor * draw(st.integers(1, 16))
    start = divisor * draw(st.integers(1, target // divisor))
    end = divisor * draw(st.integers(start // divisor, target**2 // divisor // divisor))
    return target, start, end, divisor


def test_the_buckets_of_768_are_these() -> None:
    assert [str(size) for size in bucket_sizes(768, 512, 1024, 128)] == [
        "512x1152",
        "512x1024",
        "640x896",
        "768x768",
        "896x640",
        "1024x512",
        "1152x512",
    ]


@given(steps())
def test_every_side_is_a_multiple_and_no_area_is_above_the_targets(
    step: tuple[int, int, int, int],
) -> None:
    target, _, _, divisor = step
    sizes = bucket_sizes(*step)
    assert sizes
    for size in sizes:
        assert size.width % divisor == size.height % divisor == 0
        assert 0 < size.pixels <= target**2


@given(steps())
def test_an_area_is_as_near_to_the_targets_as_one_more_step_allows(
    step: tuple[int, int, int, int],
) -> None:
    target, start, end, divisor = step
    for size in bucket_sizes(*step):
        stepped = [
            (side, other)
            for side, other in ((size.width, size.height), (size.height, size.width))
            if start <= side <= end
        ]
        assert any(side * (other + divisor) > target**2 for side, other in stepped)


@given(steps())
def test_every_bucket_is_there_once_and_turned_by_a_quarter(
    step: tuple[int, int, int, int],
) -> None:
    sizes = bucket_sizes(*step)
    assert len(set(sizes)) == len(sizes)
    assert {Size(size.height, size.width) for size in sizes} == set(sizes)
    ratios = [size.width / size.height for size in sizes]
    assert ratios == sorted(ratios)


@given(steps(), SIZES)
def test_the_nearest_bucket_is_nearest(step: tuple[int, int, int, int], picture: Size) -> None:
    sizes = bucket_sizes(*step)

    def quotient(bucket: Size) -> float:
        ratios = bucket.width * picture.height, bucket.height * picture.width
        return max(ratios) / min(ratios)

    chosen = nearest_bucket(picture, sizes)
    assert chosen in sizes
    assert quotient(chosen) == pytest.approx(min(map(quotient, sizes)))


@given(steps())
def test_a_picture_of_a_buckets_size_goes_to_a_bucket_of_its_shape(
    step: tuple[int, int, int, int],
) -> None:
    sizes = bucket_sizes(*step)
    for size in sizes:
        chosen = nearest_bucket(size, sizes)
        assert chosen.width * size.height == chosen.height * size.width
