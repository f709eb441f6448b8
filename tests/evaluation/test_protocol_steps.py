"""The steps of benchmark protocols against values computed by hand."""

import math

import numpy as np
import pytest
from PIL import Image

from hf_vla.evaluation.protocol_steps import (
    ActionProcessor,
    RelativeGripper,
    SuccessRule,
    centre_crop,
    crop,
    euler_to_axis_angle,
    nested_mean,
    process_image,
    quaternion_to_axis_angle,
    resize,
    resize_with_pad,
    threshold_gripper,
)


def image_of(values) -> Image.Image:
    """A gray RGB image with these values, (H, W)."""
    return Image.fromarray(np.repeat(np.array(values, np.uint8)[..., None], 3, axis=2))


def values_of(image: Image.Image) -> list:
    return np.asarray(image)[..., 0].tolist()


def test_orientations():
    image = image_of([[1, 2], [3, 4]])
    assert values_of(process_image(image, ["rotate_180"])) == [[4, 3], [2, 1]]
    assert values_of(process_image(image, ["flip_vertical"])) == [[3, 4], [1, 2]]


def test_crops_and_pads():
    image = image_of(np.arange(36).reshape(6, 6))
    assert values_of(crop(image, 1, 3, 2, 5)) == [[8, 9, 10], [14, 15, 16]]
    assert values_of(centre_crop(image, 2 / 3)) == [
        [7, 8, 9, 10],
        [13, 14, 15, 16],
        [19, 20, 21, 22],
        [25, 26, 27, 28],
    ]
    padded = process_image(image_of([[9]]), [{"pad": {"top": 1, "right": 1}}])
    assert values_of(padded) == [[0, 0], [9, 0]]
    # RoboCasa's view of the GR-1: 1280 x 800, cut, shrunk to 720 x 480, padded to a square.
    steps = [
        {"crop": {"top": 310, "bottom": 770, "left": 110, "right": 1130}},
        {"resize": {"size": [720, 480], "filter": "bilinear"}},
        {"pad": {"top": 120, "bottom": 120}},
        {"resize": {"size": [256, 256], "filter": "area"}},
    ]
    view = process_image(Image.new("RGB", (1280, 800), (200, 200, 200)), steps)
    column = np.asarray(view)[:, 128, 0]
    assert view.size == (256, 256) and column[20] == 0 and column[128] == 200 and column[-20] == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda image: crop(image, 0, 7, 0, 6), "rows 0 to 7 and columns 0 to 6 are not within an image of 6 x 6"),
        (lambda image: centre_crop(image, 1.5), "fraction is 1.5; possible: above 0, up to 1"),
        (lambda image: resize(image, (3, 3), "lanczos"), "unknown filter 'lanczos'; possible: nearest, bilinear"),
        (lambda image: resize(image, (12, 3), "area"), "'area' shrinks only: the image has 6 x 6 pixels, and 12 x 3"),
    ],
)
def test_what_images_cannot_do(call, message):
    with pytest.raises(ValueError, match=message):
        call(image_of(np.zeros((6, 6))))


def test_area_filter():
    # Half: the mean of 2 x 2 pixels.
    assert values_of(resize(image_of([[0, 10, 20, 30], [20, 30, 40, 50]]), (2, 1), "area")) == [[15, 35]]
    # Three pixels into two: each covers one and a half.
    assert values_of(resize(image_of([[30, 60, 90]]), (2, 1), "area")) == [[40, 80]]
    same = image_of([[1, 2]])
    assert values_of(resize(same, (2, 1), "area")) == [[1, 2]]


def test_area_filter_is_opencvs():
    cv2 = pytest.importorskip("cv2", reason="OpenCV, which comes with LIBERO, is not installed")
    pixels = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    for shape in ((480, 640), (256, 256), (512, 640), (240, 320)):
        image = np.resize(pixels, (*shape, 3))
        ours = np.asarray(resize(Image.fromarray(image), (224, 224), "area")).astype(int)
        theirs = cv2.resize(image, (224, 224), interpolation=cv2.INTER_AREA).astype(int)
        # Both round sums of float32; they may fall on different sides of a half.
        assert np.abs(ours - theirs).max() <= 1 and (ours != theirs).mean() < 5e-3


def test_resize_with_pad():
    padded = resize_with_pad(Image.new("RGB", (320, 240), (255, 0, 0)), (224, 224), "bilinear")
    reds = np.asarray(padded)[:, 100, 0]
    assert padded.size == (224, 224)
    assert (reds[:28] == 0).all() and (reds[28:196] == 255).all() and (reds[196:] == 0).all()
    assert resize_with_pad(image_of(np.full((84, 84), 7)), (224, 224), "bilinear").size == (224, 224)


def test_grippers_side_by_side():
    rules = {
        "WidowX, 1 opens": {"above": 1, "below": -1},
        "LIBERO, -1 opens": {"above": -1, "below": 1},
        "VLA-Arena": {"above": 1, "below": -1, "inclusive": True},
        "CALVIN": {"above": 1, "below": -1, "threshold": 0},
        "RoboTwin": {"above": 1, "below": 0},
    }
    commands = {
        name: [threshold_gripper(np.array([9.0, g]), columns=[1], **rule)[1] for g in (0.0, 0.2, 0.5, 0.7)]
        for name, rule in rules.items()
    }
    assert commands == {
        "WidowX, 1 opens": [-1, -1, -1, 1],
        "LIBERO, -1 opens": [1, 1, 1, -1],
        "VLA-Arena": [-1, -1, 1, 1],
        "CALVIN": [-1, 1, 1, 1],
        "RoboTwin": [0, 0, 0, 1],
    }


def test_googles_sticky_gripper():
    gripper = RelativeGripper(column=0, threshold=0.5, hold=10)

    def commands(values):
        return [round(float(gripper(np.array([g]))[0]), 6) for g in values]

    assert commands([1.0, 0.9, 0.6]) == [
        0.0,
        0.1,
        0.4,
    ]  # relative to the first value, which small changes do not replace
    held = commands([0.2] + [1.0] * 9)
    assert held == [0.8] * 10  # ten times, whatever is predicted meanwhile
    assert commands([0.2, 0.3]) == [0.0, -0.1]  # relative to the value that started the command
    assert commands([1.0]) == [-0.8]  # and the other way round
    gripper.reset()
    assert commands([0.3, 0.5]) == [0.0, -0.2]


def test_euler_angles_to_axis_angle():
    def converted(*rpy):
        return euler_to_axis_angle(np.array([7, 8, 9, *rpy, 1.0]))

    for axis in range(3):
        angles = [0.0, 0.0, 0.0]
        angles[axis] = 0.3
        np.testing.assert_allclose(converted(*angles), [7, 8, 9, *angles, 1], atol=1e-12)
    # Roll, then pitch, each by 90 degrees about fixed axes: 120 degrees about (1, 1, -1) / sqrt(3).
    expected = 2 * math.pi / 3 * np.array([1, 1, -1]) / math.sqrt(3)
    np.testing.assert_allclose(converted(math.pi / 2, math.pi / 2, 0)[3:6], expected, atol=1e-12)
    assert converted(0, 0, 0)[3:6].tolist() == [0, 0, 0]


def test_euler_angles_are_scipys():
    from scipy.spatial.transform import Rotation

    for angles in np.random.default_rng(0).uniform(-math.pi, math.pi, (50, 3)):
        rotation = Rotation.from_euler("xyz", angles)  # lower case: about fixed axes
        ours = euler_to_axis_angle(np.array([0, 0, 0, *angles, 0.0]))[3:6]
        np.testing.assert_allclose(Rotation.from_rotvec(ours).as_matrix(), rotation.as_matrix(), atol=1e-9)
        assert np.linalg.norm(ours) <= math.pi + 1e-9


def test_a_quaternions_sign_is_kept():
    half = math.sqrt(0.5)
    np.testing.assert_allclose(quaternion_to_axis_angle(np.array([0, 0, half, half])), [0, 0, math.pi / 2])
    np.testing.assert_allclose(quaternion_to_axis_angle(np.array([0, 0, -half, -half])), [0, 0, -3 * math.pi / 2])
    assert quaternion_to_axis_angle(np.array([0, 0, 0, 1.0])).tolist() == [0, 0, 0]


def test_robotwins_columns():
    # left joints, right joints, left gripper, right gripper -> left arm with its gripper, right arm with its gripper
    order = [0, 1, 2, 3, 4, 5, 12, 6, 7, 8, 9, 10, 11, 13]
    process = ActionProcessor([{"permute_columns": {"order": order}}])
    action = np.array([*range(1, 7), *range(11, 17), 0.25, 0.75])
    assert process(action).tolist() == [1, 2, 3, 4, 5, 6, 0.25, 11, 12, 13, 14, 15, 16, 0.75]
    with pytest.raises(ValueError, match="does not name each of 14 values once"):
        ActionProcessor([{"permute_columns": {"order": [0] * 14}}])(action)


def test_an_action_processor_leaves_the_action_alone_and_forgets_at_a_reset():
    process = ActionProcessor([{"scale": {"columns": [0], "factor": 2.0}}, {"relative_gripper": {"column": 1}}])
    action = np.array([1.0, 1.0], np.float32)
    assert process(action).tolist() == [2, 0] and action.tolist() == [1, 1]
    assert process(np.array([1.0, 0.0])).tolist() == [2, 1]
    process.reset()
    assert process(np.array([1.0, 0.0])).tolist() == [2, 0]


def test_success_rules():
    def counting(rule, every=None, steps=6):
        rule = SuccessRule(rule, every)
        return [step for step in range(1, steps + 1) if rule.counts(step, last=step == steps)]

    assert counting("any_step") == [1, 2, 3, 4, 5, 6]
    assert counting("last_step") == [6]
    assert counting("sampled", 2) == [2, 4, 6]
    with pytest.raises(ValueError, match="unknown success rule 'sometimes'; possible: any_step"):
        SuccessRule("sometimes")
    with pytest.raises(ValueError, match="'sampled' alone takes it"):
        SuccessRule("sampled")


def test_scores_are_means_of_means():
    rates = {"a": 1.0, "b": 0.0, "c": 0.5, "camera": 0.0}
    assert nested_mean(rates, ["a", "b", "c"]) == 0.5
    assert nested_mean(rates, {"first": ["a", "b"], "second": "c"}) == 0.5
    assert nested_mean(rates, [["a", "camera"], "c"], exclude=["camera"]) == 0.75
    assert (
        nested_mean(rates, [["camera"], "c"], exclude=["camera"]) == 0.5
    )  # a group of which nothing counts is left out
    with pytest.raises(ValueError, match="no rates are given for d"):
        nested_mean(rates, ["a", "d"])
    with pytest.raises(ValueError, match="none of the tasks counts"):
        nested_mean(rates, ["camera"], exclude=["camera"])
