from hypothesis import given
from hypothesis import strategies as st

from tasks.buckets import Size, bucket_sizes, nearest_bucket

SIDES = st.integers(2, 32)


@given(divisor=st.sampled_from([16, 32, 64]), target=SIDES, start=SIDES, more=st.integers(0, 16))
def test_buckets_are_multiples_and_never_larger_than_the_target(
    divisor: int, target: int, start: int, more: int
) -> None:
    sizes = bucket_sizes(target * divisor, start * divisor, (start + more) * divisor, divisor)
    for size in sizes:
        assert size.width % divisor == size.height % divisor == 0
        assert size.pixels <= (target * divisor) ** 2
        assert Size(size.height, size.width) in sizes


def test_the_buckets_of_768_are_those_that_invoke_training_makes() -> None:
    sizes = {tuple(size) for size in bucket_sizes(768, 384, 1536, 384)}
    assert sizes == {(384, 1536), (1536, 384), (768, 768), (1152, 384), (384, 1152)}


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_an_image_goes_to_a_bucket_of_nearly_its_own_shape(width: int, height: int) -> None:
    buckets = bucket_sizes(512, 256, 1024, 64)
    found = nearest_bucket(Size(width, height), buckets)
    turned = nearest_bucket(Size(height, width), buckets)
    assert found.pixels == turned.pixels
    assert (found.width >= found.height) or (width < height) or found in buckets
    assert nearest_bucket(found, buckets) == found
