"""Pixels are StarVLA's: torchvision's numbers without torchvision, and Pillow 12's under every version."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2VLImageProcessorPil

from hf_vla.processing.pixels import qwen_vl_pixels
from hf_vla.utils.pillow import resize

RECORDED = Path(__file__).resolve().parents[1] / "reference" / "preprocessing.npz"
#: settings of the published processors
PUBLISHED = {
    "qwen3_vl": {
        "size": {"shortest_edge": 65536, "longest_edge": 16777216},
        "patch_size": 16,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    },
    "qwen2_5_vl": {"size": {"shortest_edge": 3136, "longest_edge": 12845056}, "patch_size": 14},
}


@pytest.fixture(scope="module")
def recorded():
    return np.load(RECORDED)


@pytest.mark.parametrize("size", ["224x224", "100x75"])
@pytest.mark.parametrize("family", PUBLISHED)
def test_published_processors_give_what_torchvision_gave(recorded, family, size):
    processor = Qwen2VLImageProcessorPil(**PUBLISHED[family])
    given = qwen_vl_pixels(processor, [Image.fromarray(recorded[f"{size}/image"])])
    np.testing.assert_array_equal(given["image_grid_thw"], recorded[f"{size}/{family}/image_grid_thw"])
    np.testing.assert_allclose(given["pixel_values"], recorded[f"{size}/{family}/pixel_values"], rtol=0, atol=1e-6)


def test_a_view_of_224_pixels_is_64_tokens_of_both_families(recorded):
    for settings in PUBLISHED.values():
        grid = qwen_vl_pixels(Qwen2VLImageProcessorPil(**settings), [Image.fromarray(recorded["224x224/image"])])
        assert grid["image_grid_thw"].prod() // 4 == 64


def test_several_images_of_several_sizes_are_one_after_the_other(recorded):
    processor = Qwen2VLImageProcessorPil(**PUBLISHED["qwen3_vl"])
    images = [Image.fromarray(recorded[f"{size}/image"]) for size in ("224x224", "100x75", "224x224")]
    together = qwen_vl_pixels(processor, images)
    alone = [qwen_vl_pixels(processor, [image]) for image in images]
    for name, values in together.items():
        assert torch.equal(values, torch.cat([one[name] for one in alone]))


@pytest.mark.parametrize(
    "settings",
    [
        {"do_resize": False},
        {"do_normalize": False},
        {"do_rescale": False},
        {"do_normalize": False, "do_rescale": False},
        {"temporal_patch_size": 1},
        {"merge_size": 1},
    ],
)
def test_every_setting_is_followed(settings):
    """Where nothing has to be resized, transformers' own processor without torchvision gives the same."""
    processor = Qwen2VLImageProcessorPil(size={"shortest_edge": 1, "longest_edge": 1 << 24}, **settings)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (56, 84, 3), dtype=np.uint8))
    expected = processor(images=[image], return_tensors="pt")
    given = qwen_vl_pixels(processor, [image])
    assert torch.equal(given["image_grid_thw"], expected["image_grid_thw"])
    torch.testing.assert_close(given["pixel_values"], expected["pixel_values"].float(), rtol=1e-6, atol=1e-6)


def test_a_filter_that_torch_does_not_have_is_left_to_the_processor():
    processor = Qwen2VLImageProcessorPil(
        size={"shortest_edge": 1, "longest_edge": 56 * 56}, resample=Image.Resampling.BOX
    )
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8))
    given, expected = qwen_vl_pixels(processor, [image]), processor(images=[image], return_tensors="pt")
    assert torch.equal(given["pixel_values"], expected["pixel_values"])


class TestResize:
    """By hand, as Pillow 12 and older: each pass weighs pixels by the filter and rounds to 8 bits, the horizontal one first."""

    @staticmethod
    def filtered(pixels: np.ndarray, length: int, axis: int) -> np.ndarray:
        pixels, size = np.moveaxis(pixels.astype(float), axis, 0), pixels.shape[axis]
        scale = max(size / length, 1.0)
        result = np.empty((length, *pixels.shape[1:]))
        for i in range(length):
            center = (i + 0.5) * size / length
            low, high = max(0, int(center - 2 * scale + 0.5)), min(size, int(center + 2 * scale + 0.5))
            x = np.abs((np.arange(low, high) + 0.5 - center) / scale)
            a = -0.5
            weights = np.where(x < 1, ((a + 2) * x - (a + 3)) * x * x + 1, (((x - 5) * x + 8) * x - 4) * a * (x < 2))
            result[i] = np.tensordot(weights / weights.sum(), pixels[low:high], 1)
        return np.moveaxis(np.clip(np.floor(result + 0.5), 0, 255), 0, axis)

    @pytest.mark.parametrize(("size", "to"), [((80, 112), (96, 64)), ((100, 75), (96, 64)), ((64, 48), (64, 48))])
    def test_the_width_comes_first(self, size, to):
        pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        expected = self.filtered(self.filtered(pixels, to[0], 1), to[1], 0)
        given = np.asarray(resize(Image.fromarray(pixels), to), dtype=float)
        # Pillow weighs by integers of 22 bits, so that a value at a rounding edge may fall to the other side.
        assert np.abs(given - expected).max() <= 1 and np.mean(given != expected) < 0.002

    def test_a_part(self):
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
        part = resize(image, (30, 20), box=(12, 8, 42, 28))
        assert np.array_equal(part, image.crop((12, 8, 42, 28)))
