import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.buckets import Size, bucket_sizes, nearest_bucket

SIDES = st.integers(2, 32)


@given(divisor=st.sampled_from([16, 32, 64]), target=SIDES, start=SIDES, more=st.integers(0, 16))
def test_buckets_are_multiples_up_to_the_target_area(
    divisor: int, target: int, start: int, more: int
) -> None:
    sizes = bucket_sizes(target * divisor, start * divisor, (start + more) * divisor, divisor)
    for size in sizes:
        assert size.width % divisor == size.height % divisor == 0
        assert size.pixels <= (target * divisor) ** 2
        assert Size(size.height, size.width) in sizes


def test_the_buckets_of_768_equal_invoke_trainings() -> None:
    sizes = {tuple(size) for size in bucket_sizes(768, 384, 1536, 384)}
    assert sizes == {(384, 1536), (1536, 384), (768, 768), (1152, 384), (384, 1152)}


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_an_image_gets_a_bucket_of_similar_shape(width: int, height: int) -> None:
    buckets = bucket_sizes(512, 256, 1024, 64)
    found = nearest_bucket(Size(width, height), buckets)
    turned = nearest_bucket(Size(height, width), buckets)
    assert found.pixels == turned.pixels
    assert nearest_bucket(found, buckets) == found
    if width > height:
        assert found.width >= found.height


@st.composite
def steps(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """Valid target_resolution, start_dim, end_dim and divisible_by."""
    divisor = draw(st.sampled_from([16, 32, 64, 128]))
    target = draw(st.integers(1, 16))
    start = draw(st.integers(1, target))
    end = draw(st.integers(start, target**2))
    return target * divisor, start * divisor, end * divisor, divisor


@given(steps())
def test_one_more_step_exceeds_the_target(step: tuple[int, int, int, int]) -> None:
    target, start, end, divisor = step
    sizes = bucket_sizes(*step)
    assert sizes
    for size in sizes:
        pairs = ((size.width, size.height), (size.height, size.width))
        stepped = [(side, other) for side, other in pairs if start <= side <= end]
        assert any(side * (other + divisor) > target**2 for side, other in stepped)


@given(steps())
def test_buckets_are_unique_and_narrowest_first(step: tuple[int, int, int, int]) -> None:
    sizes = bucket_sizes(*step)
    assert len(set(sizes)) == len(sizes)
    ratios = [size.width / size.height for size in sizes]
    assert ratios == sorted(ratios)


@given(steps(), st.integers(1, 20000), st.integers(1, 20000))
def test_the_nearest_bucket_is_nearest(
    step: tuple[int, int, int, int], width: int, height: int
) -> None:
    def quotient(bucket: Size) -> float:
        ratios = bucket.width * height, bucket.height * width
        return max(ratios) / min(ratios)

    sizes = bucket_sizes(*step)
    chosen = nearest_bucket(Size(width, height), sizes)
    assert chosen in sizes
    assert quotient(chosen) == pytest.approx(min(map(quotient, sizes)))
