"""The running app in a real Chromium: what a visitor does, and does wrong. Pictures are left in outputs/test_screenshots.

That no page logs an error or asks another host is checked by `open_page`, of every test.
"""

import json
import re

import numpy as np
import pytest
from picture_demo import PHONE, choose, look_inside, predict, running_app, watch
from PIL import Image
from transformers import pipeline

from hf_vla import Policy
from hf_vla.demo.policies import EXAMPLES, HERE

pytestmark = pytest.mark.slow  # an app, a browser


def upload(page, *files) -> None:
    """Replace the images by these files."""
    clear = page.locator("#images button[aria-label=Clear]")
    if clear.count():
        clear.click()
        page.wait_for_function("!document.querySelector('#images img')")
    page.locator("#images input[type=file]").first.set_input_files([str(file) for file in files])
    page.wait_for_function("count => document.querySelectorAll('#images img').length >= count", arg=len(files))


def fill(page, name: str, text: str) -> None:
    page.locator(f"#{name} textarea, #{name} input[type=number], #{name} input:not([type=range])").first.fill(text)
    page.keyboard.press("Tab")


def download(page) -> dict:
    with page.expect_download() as started:
        page.click("#predict-details a.download")
    return json.loads(started.value.path().read_text())


def message(page, picture=lambda: None) -> str:
    """The message that appears, which is then closed, if it has not gone by itself; `picture` takes one of it."""
    text = page.locator(".toast-body").first.inner_text()
    picture()
    page.evaluate("document.querySelectorAll('.toast-close').forEach(button => button.click())")
    page.wait_for_function("!document.querySelector('.toast-body')")
    return text


def fits(page) -> bool:
    """Whether nothing sticks out of the page to the right."""
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_an_example_is_predicted_as_in_plain_python_and_by_the_pipeline(app, models, open_page, screenshot):
    page = open_page(app)
    page.locator("#examples button, #examples .gallery-item").nth(1).click()
    page.wait_for_function(
        "text => document.querySelector('#instruction textarea').value == text", arg="press the button from the top"
    )
    choose(page, "key", "strong_arm")
    for name, value in {"seed": "3", "samples": "5", "steps": "2"}.items():
        fill(page, name, value)
    predict(page)
    screenshot(page, "predict-desktop")
    shown = download(page)

    example = EXAMPLES[1]
    observation = {
        "image": [Image.open(HERE / "examples" / name) for name in example["images"]],
        "lang": example["instruction"],
        "state": [float(x) for x in example["state"].split(",")],
    }
    policy = Policy.from_pretrained(str(models["two_robots"]), unnorm_key="strong_arm")
    expected = policy.predict(observation, num_samples=5, num_inference_steps=2, seed=3)
    np.testing.assert_allclose(shown["actions"], expected.actions, rtol=1e-5, atol=1e-5)
    assert np.shape(shown["actions"]) == (5, 8, 4)
    pipe = pipeline("vision-language-action", model=str(models["two_robots"]))
    same = pipe(observation, unnorm_key="strong_arm", num_inference_steps=2, seed=3)["actions"]
    np.testing.assert_allclose(shown["actions"][0], same, rtol=1e-5, atol=1e-5)
    assert shown["action_names"] == ["x", "y", "z", "gripper"] and shown["unnorm_key"] == "strong_arm"
    assert shown["prompt"] == expected.prompt == page.inner_text("#predict-details pre.prompt")
    assert page.locator("#predict-plots img").count() == 4
    assert {"backbone", "action head"} < set(page.locator("#predict-details th").all_inner_texts())

    # Names that don't tell what they are: the visitor does, and the path changes.
    first = page.locator("#predict-path img").first.get_attribute("src")
    page.locator("#meaning label", has_text="displacements").click()
    page.wait_for_function("src => document.querySelector('#predict-path img').src != src", arg=first)
    assert "sums of the displacements" in page.inner_text("#predict-path")


def test_several_images_are_uploaded_and_large_ones_scaled_down(app, open_page, tmp_path):
    for name, size in {"front.png": (96, 96), "wrist.jpg": (1000, 500)}.items():
        Image.new("RGB", size, "teal").save(tmp_path / name)
    page = open_page(app)
    page.wait_for_selector("#images button[aria-label=Clear]")  # the example that it starts with
    upload(page, tmp_path / "front.png", tmp_path / "wrist.jpg")
    predict(page)
    assert download(page)["image_sizes"] == [[96, 96], [448, 224]]
    assert "Image 2 of 1000×500 pixels was scaled down to 448×224" in page.inner_text("#predict-details")


def test_an_episode_is_watched_to_its_end_and_another_is_cancelled(app, endless_log, open_page, screenshot):
    page = open_page(app)
    assert re.fullmatch(r"not solved in 12 steps|solved after \d+ steps", watch(page, limit=12))
    assert page.inner_text("#screen .instruction") == "“open the drawer”"
    assert page.locator("#screen .actions tr").count() == 4
    endless_log.write_text("")
    # An episode that does not end by itself: if it ends, then because it was cancelled.
    choose(page, "simulator", "endless")
    page.wait_for_function("document.querySelector('#task input').value == 'on-and-on'")
    page.click("#watch")
    page.wait_for_selector("#screen .instruction:text('go on and on')")
    assert endless_log.read_text() == "opened\n"
    page.click("#watch-cancel")
    page.wait_for_selector("#watch-status :text('Cancelled.')")
    assert endless_log.read_text() == "opened\nclosed\n"
    assert page.locator("#screen .outcome").count() == 0 and page.locator("#strip .episode").count() == 1
    # Simulator and policy are free again, and one click starts the next episode.
    choose(page, "simulator", "metaworld")
    page.wait_for_function("document.querySelector('#task input').value == 'drawer-open'")
    watch(page, limit=10, task="window-open")
    assert page.inner_text("#screen .step").endswith("of 10") and page.locator("#screen .outcome").count() == 1
    assert page.locator("#strip .episode").count() == 2 and page.inner_text("#watch-status").strip() == ""
    screenshot(page, "watch-desktop")


def test_looking_inside(app, open_page, screenshot):
    page = open_page(app)
    look_inside(page)
    screenshot(page, "look-inside-desktop")
    assert page.locator("#maps img").count() == 3 * 4  # layers, denoising steps
    page.wait_for_selector("#formation :text('step 4 of 4')")
    page.wait_for_selector("#attention :text('all layers')")
    before = page.locator("#attention img").get_attribute("src")
    fill(page, "block", "2")
    page.wait_for_selector("#attention :text('layer 2 of 3')")
    fill(page, "look-step", "1")
    page.wait_for_selector("#attention :text('denoising step 1 of 4')")
    page.wait_for_selector("#formation :text('after step 1 of 4')")
    assert page.locator("#attention img").get_attribute("src") != before


def compare(page, other) -> None:
    """Name the other policy and compare, by keyboard alone."""
    page.get_by_role("tab", name="Compare").focus()
    page.keyboard.press("Enter")
    page.locator("#compare-model input").focus()
    page.keyboard.type(str(other))
    page.keyboard.press("Enter")
    page.locator("#compare").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#comparison table")


def test_phone(app, models, open_page, screenshot):
    page = open_page(app, PHONE)
    predict(page)
    assert fits(page)
    screenshot(page, "predict-phone")
    compare(page, models["oft"])
    assert fits(page)
    screenshot(page, "compare-phone")
    watch(page, limit=10)
    assert fits(page)
    screenshot(page, "watch-phone")
    look_inside(page)
    assert fits(page)
    screenshot(page, "look-inside-phone")
    page.get_by_role("tab", name="Predict").click()
    fill(page, "instruction", "")
    page.click("#predict")

    def picture():
        page.wait_for_timeout(800)  # it slides in
        screenshot(page, "message-phone", full_page=False)
        assert fits(page)

    assert "There is no instruction" in message(page, picture)


def test_bad_observations_get_a_message_and_the_app_goes_on(app, open_page, screenshot, tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "fake.png").write_text("no picture either")
    Image.new("L", (8000, 8000)).save(tmp_path / "huge.png")
    page = open_page(app)

    for name, text, expected in (
        ("instruction", "", "There is no instruction. Say what the robot should do"),
        ("instruction", "open " * 2000, "has 9,999 characters; at most 1,000 are read. Shorten it"),
        ("state", "1, 2, 3", "The state has 3 numbers; this policy's has 4"),
        ("state", "1, 2, left, 4", "The state holds “left”, which is not a number"),
        ("state", "1, 2, 3, nan", "infinite number or NaN"),
        ("seed", "", "The seed is empty"),
    ):
        before = page.locator(f"#{name} textarea, #{name} input").first.input_value()
        fill(page, name, text)
        page.click("#predict")
        assert expected in message(page)
        fill(page, name, before)

    page.locator("#images button[aria-label=Clear]").click()
    page.click("#predict")
    shown = message(page, lambda: screenshot(page, "message-desktop", full_page=False))
    assert "There is no image. Add one by upload or webcam" in shown
    page.locator("#images input[type=file]").first.set_input_files(str(tmp_path / "notes.txt"))
    assert "Invalid file type: notes.txt" in message(page)
    for name, expected in {
        "fake.png": "is not an image that can be read. Give a PNG, JPEG",
        "huge.png": "has 8000×8000 pixels; at most 4096×4096 are read. Scale it down",
    }.items():
        upload(page, tmp_path / name)
        page.click("#predict")
        assert expected in message(page)

    page.locator("#examples button, #examples .gallery-item").first.click()
    page.wait_for_selector("#images img[src*=drawer-open]")
    predict(page)
    assert len(download(page)["actions"]) == 8


def test_models_are_changed_compared_and_bad_ones_refused(app, models, open_page, screenshot):
    page = open_page(app)
    page.click("#other-model button")

    def load(name) -> None:
        fill(page, "model-id", str(name))
        page.click("#load")

    for name, expected in {
        "": "There is no model. Give a folder, or a repository",
        "nobody/no-such-policy": "nobody/no-such-policy",
        "/no/such/folder": "/no/such/folder",
        str(models["no_statistics"]): "holds no statistics, so its actions can't be turned into robot units",
    }.items():
        load(name)
        assert expected in message(page)
        assert "qwen_pi_v3" in page.inner_text("#model")  # the former one stays

    load(models["oft"])
    page.wait_for_selector("#model :text('qwen_oft')")
    predict(page)
    assert np.shape(download(page)["actions"]) == (1, 4, 4)
    page.get_by_role("tab", name="Look inside").click()
    page.click("#look")
    page.wait_for_selector("#attention :text('the mean of all layers of the backbone')")
    page.wait_for_function("document.querySelectorAll('#maps img').length == 3")  # layers
    assert not page.locator("#formation img").count()
    # The other policy takes what it can of the same inputs: its own statistics, its own horizon.
    compare(page, models["two_robots"])
    assert page.locator("#comparison img").count() == 4
    compared = page.inner_text("#comparison")
    assert "Mean distance over 4 steps" in compared and "two_robots" in compared
    assert "has no statistics" not in compared
    screenshot(page, "compare-desktop")
    page.locator("#released input").click()
    page.get_by_role("option").filter(has_text="Qwen3-VL-OFT-LIBERO-4in1").first.click()
    page.wait_for_function(
        "document.querySelector('#model-id textarea, #model-id input').value.startsWith('StarVLA/')"
    )
    load("untrained")
    page.wait_for_selector("#model :text('never trained')")
    look_inside(page)
    page.wait_for_selector("#formation img")


def test_without_a_model_and_without_a_display_the_rest_still_works(open_page, tmp_path):
    log = tmp_path / "app.log"
    with running_app("nobody/no-such-policy", log, MUJOCO_GL="glfw", DISPLAY="") as address:
        page = open_page(address)
        about = page.inner_text("#model")
        assert "nobody/no-such-policy can't be loaded" in about and "never trained" in about
        page.get_by_role("tab", name="Watch").click()
        page.click("#watch")
        text = message(page)
        assert "cannot render" in text and "libosmesa6" in text
        predict(page)
        assert len(download(page)["actions"]) == 8
        page.context.close()  # before the app, which it would miss
    assert "a handler failed" not in log.read_text()
