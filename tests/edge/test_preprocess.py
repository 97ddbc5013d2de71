"""Our preprocessing against Pillow and Transformers' own image processor, to the bit."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image as PIL_Image
from transformers.models.qwen2_vl import image_processing_qwen2_vl as reference

from edge import preprocess as pp
from edge.preprocess import preprocess, smart_resize

SIZES = st.tuples(st.integers(1, 120), st.integers(1, 120))
TARGETS = st.tuples(st.integers(1, 6), st.integers(1, 6)).map(lambda blocks: (blocks[0] * 28, blocks[1] * 28))


def noise(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def scene(height: int, width: int) -> NDArray[np.uint8]:
    """Something like a photograph: shading, sharp edges (which make bicubic overshoot and clip), fine texture."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    image = np.stack([120 + 100 * np.sin(x / 37), 90 + 80 * np.cos(y / 23), 255 * x / width], axis=-1)
    image[height // 4 : height // 2, width // 3 : width // 2] = (255, 0, 0)
    image[(x - 0.7 * width) ** 2 + (y - 0.6 * height) ** 2 < (0.15 * height) ** 2] = (0, 0, 255)
    image[:, : width // 8] = np.where(((x + y) % 2 == 0)[:, : width // 8, None], 255, 0)
    return np.clip(image + np.random.default_rng(0).normal(0, 3, image.shape), 0, 255).astype(np.uint8)


def by_pillow(rgb: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """Pillow's bicubic resize, across first and then down.

    That is the order of one call in every Pillow before 13; since then a call goes down first where the height
    shrinks by over twice as many pixels as the width does. The bytes differ a little with the order.
    """
    across = PIL_Image.fromarray(rgb).resize((width, rgb.shape[0]), PIL_Image.BICUBIC)
    return np.asarray(across.resize((width, height), PIL_Image.BICUBIC))


def by_transformers(rgb: NDArray[np.uint8], **options: object) -> NDArray[np.float32]:
    """(n, 1176) float32 from the slow (Pillow) image processor."""
    return reference.Qwen2VLImageProcessor(**options)(PIL_Image.fromarray(rgb), return_tensors="np")["pixel_values"]


@pytest.mark.parametrize("image", [noise(480, 640, 1), scene(480, 640), scene(720, 1280), scene(100, 133)])
@pytest.mark.parametrize("pixels", [224 * 168, 448 * 336])
def test_equals_the_transformers_processor(image: NDArray[np.uint8], pixels: int) -> None:
    expected = by_transformers(image, min_pixels=pixels // 2, max_pixels=pixels)
    height, width = smart_resize(*image.shape[:2], pixels // 2, pixels)
    actual = preprocess(image, width, height)
    assert actual.dtype == np.float32 and actual.flags.c_contiguous
    np.testing.assert_array_equal(actual, expected)


def test_passes_in_the_other_order_are_close() -> None:
    """640x480 to 644x476 is where Pillow 13 itself changed: one step of a byte on all but hard edges."""
    expected = by_transformers(scene(480, 640), min_pixels=644 * 476, max_pixels=644 * 476)
    step = 1 / 255 / min(pp.IMAGE_STD)
    difference = np.abs(preprocess(scene(480, 640), 644, 476) - expected)
    assert np.mean(difference > 1.01 * step) < 0.001
    assert difference.max() < 16 * step


@settings(max_examples=60, deadline=None)
@given(size=SIZES, target=TARGETS, seed=st.integers(0, 2**32 - 1))
@example(size=(1, 1), target=(28, 28), seed=0)
@example(size=(28, 56), target=(28, 56), seed=0)
@example(size=(480, 640), target=(168, 224), seed=0)
def test_equals_pillow_at_any_size(size: tuple[int, int], target: tuple[int, int], seed: int) -> None:
    image = noise(*size, seed)
    height, width = target
    expected = by_transformers(by_pillow(image, width, height), do_resize=False)
    np.testing.assert_array_equal(preprocess(image, width, height), expected)


def test_bgr_is_rgb_flipped() -> None:
    image = scene(48, 64)
    np.testing.assert_array_equal(preprocess(image[..., ::-1], 84, 56, order="bgr"), preprocess(image, 84, 56))


def test_takes_views_and_leaves_its_input_alone() -> None:
    whole = scene(96, 128)
    before = whole.copy()
    part = whole[10:70:2, 5:95]
    assert not part.flags.c_contiguous
    np.testing.assert_array_equal(preprocess(part, 56, 28), preprocess(part.copy(), 56, 28))
    whole.flags.writeable = False  # as frames from a decoder are
    preprocess(whole, 56, 28)
    np.testing.assert_array_equal(whole, before)


def test_patches_are_ordered_by_merge_block() -> None:
    """Each 14-pixel cell of a 84x56 image has its own grey; cells come back 2x2 block by 2x2 block."""
    cells = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    image = np.repeat(np.kron(cells, np.ones((14, 14), np.uint8))[..., None], 3, axis=2)
    red = preprocess(image, 84, 56)[:, 0] * pp.IMAGE_STD[0] + pp.IMAGE_MEAN[0]
    order = np.rint(red * 255 / 10).astype(int)
    assert order.tolist() == [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11, 12, 13, 18, 19, 14, 15, 20, 21, 16, 17, 22, 23]


@pytest.mark.parametrize(
    ("image", "size", "error"),
    [
        (np.zeros((28, 28, 3), np.float32), (28, 28), TypeError),
        ([[[0, 0, 0]]], (28, 28), TypeError),
        (np.zeros((28, 28), np.uint8), (28, 28), ValueError),
        (np.zeros((28, 28, 4), np.uint8), (28, 28), ValueError),
        (np.zeros((1, 28, 28, 3), np.uint8), (28, 28), ValueError),
        (np.zeros((0, 28, 3), np.uint8), (28, 28), ValueError),
        (np.zeros((28, 28, 3), np.uint8), (14, 28), ValueError),
        (np.zeros((28, 28, 3), np.uint8), (28, 0), ValueError),
        (np.zeros((28, 28, 3), np.uint8), (28, -28), ValueError),
    ],
)
def test_refuses_what_it_cannot_take(image: object, size: tuple[int, int], error: type[Exception]) -> None:
    with pytest.raises(error):
        preprocess(image, *size)  # type: ignore[arg-type]


def test_refuses_another_channel_order() -> None:
    with pytest.raises(ValueError, match="grb"):
        preprocess(np.zeros((28, 28, 3), np.uint8), 28, 28, order="grb")  # type: ignore[arg-type]


@given(
    height=st.integers(1, 5000),
    width=st.integers(1, 5000),
    limits=st.tuples(st.integers(28 * 28, 10**6), st.integers(28 * 28, 2 * 10**7)).map(sorted),
)
def test_smart_resize_is_that_of_transformers(height: int, width: int, limits: list[int]) -> None:
    try:
        expected = reference.smart_resize(height, width, 28, *limits)
    except ValueError:
        with pytest.raises(ValueError):
            smart_resize(height, width, *limits)
        return
    assert smart_resize(height, width, *limits) == expected


def test_constants_are_those_of_transformers() -> None:
    processor = reference.Qwen2VLImageProcessor()
    assert (processor.patch_size, processor.merge_size, processor.temporal_patch_size) == (
        pp.PATCH_PX,
        pp.MERGE,
        pp.TEMPORAL,
    )
    assert tuple(processor.image_mean) == pp.IMAGE_MEAN and tuple(processor.image_std) == pp.IMAGE_STD
