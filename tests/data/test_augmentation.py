"""Image augmentation: off by default, within its bounds, and the same for the same (seed, epoch, index)."""

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from hf_vla.data import DatasetMixture, ImageAugmentation, LeRobotDataset

STRONG = ImageAugmentation(crop=0.8, brightness=0.3, contrast=0.3, saturation=0.4, hue=0.1)


def picture(size=(64, 48)):
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    return Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8))


def augment(augmentation, images, seed=0, cameras=1):
    return augmentation(images, np.random.default_rng(seed), cameras)


def test_off_by_default():
    image = picture()
    assert augment(ImageAugmentation(), [image]) == [image]


def test_seeds_and_history():
    image = picture()
    one, other, one_later, other_later = augment(STRONG, [image] * 4, cameras=2)
    assert one == one_later and other == other_later and one != other
    assert one == augment(STRONG, [image], cameras=2)[0]
    assert one != augment(STRONG, [image], seed=1, cameras=2)[0]


def test_crop_keeps_size_and_a_part_of_the_picture():
    wide = np.asarray(augment(ImageAugmentation(crop=0.5), [picture()], seed=3)[0]).astype(int)
    original = np.asarray(picture()).astype(int)
    assert wide.shape == original.shape
    shares = [np.ptp(wide[..., channel]) / np.ptp(original[..., channel]) for channel in (0, 1)]
    assert 0.45 < min(shares) <= max(shares) < 1 and abs(shares[0] - shares[1]) < 0.06


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_each_colour_change(name):
    image = picture()
    changed = [augment(ImageAugmentation(**{name: 0.3}), [image], seed)[0] for seed in range(6)]
    assert all(new.size == image.size and new != image for new in changed)
    difference = [np.abs(np.asarray(new).astype(int) - np.asarray(image).astype(int)).mean() for new in changed]
    assert max(difference) > 3 and max(difference) < 100
    if name == "brightness":
        means = [np.asarray(new).mean() for new in changed]
        assert min(means) < np.asarray(image).mean() < max(means)


def test_size_and_chosen_cameras():
    images = [picture(), picture((32, 32))]
    small = augment(ImageAugmentation(size=(20, 10)), images, cameras=2)
    assert [image.size for image in small] == [(20, 10)] * 2
    first, second = augment(ImageAugmentation(crop=0.5, cameras=(0,)), images, cameras=2)
    assert first != images[0] and second == images[1]


@pytest.mark.parametrize(
    "options",
    [{"crop": 0}, {"crop": 1.2}, {"hue": 0.6}, {"brightness": -0.1}, {"size": (0, 4)}, {"contrast": 1.5}]
    # What a YAML file may hold instead of numbers.
    + [{"crop": "0.9"}, {"hue": None}, {"brightness": True}, {"size": 224}, {"size": [224, "a"]}, {"size": [2.5, 2]}]
    + [{"cameras": 0}, {"cameras": ["front"]}, {"cameras": [-1]}],
)
def test_numbers_out_of_range(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        ImageAugmentation(**options)


def test_workers_and_epochs(written):
    dataset = LeRobotDataset(written["libx264"][0], 4)
    mixture = DatasetMixture([dataset], epoch_size=12, augmentation=STRONG)
    once = [mixture[index]["image"] for index in range(12)]
    loader = DataLoader(mixture, batch_size=None, num_workers=2)
    assert [item["image"] for item in loader] == once
    member, frame = mixture.draw(3)
    assert once[3] != dataset[frame]["image"]
    mixture.set_epoch(1)
    assert [mixture[index]["image"] for index in range(12)] != once
    np.testing.assert_array_equal(mixture[0]["action"], dataset[mixture.draw(0)[1]]["action"])
