"""The demo's modules, policies for it, the running app and a browser."""

from pathlib import Path

import pytest
import yaml
from picture_demo import DESKTOP, open_chromium, running_app

from hf_vla.demo.policies import RECIPE, make_untrained

#: Screenshots are kept: they are there to be looked at.
SCREENSHOTS = Path(__file__).resolve().parents[2] / "outputs" / "test_screenshots"


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> dict[str, Path]:
    """Folders of tiny policies: one of two robots, one that doesn't denoise, one without statistics."""
    folder = tmp_path_factory.mktemp("models")
    settings = yaml.safe_load(RECIPE.read_text())
    settings["framework"], settings["policy_config"] = "qwen_oft", {"action_horizon": 4}
    oft = folder / "oft.yaml"
    oft.write_text(yaml.safe_dump(settings))

    two_robots = make_untrained()
    processor = two_robots.processor
    own = processor.statistics["metaworld_robot"]
    strong = {"action": {"min": [-3.0] * 4, "max": [5.0] * 4}, "state": own["state"]}
    processor.statistics = {**processor.statistics, "strong_arm": strong}
    of_key = processor.normalization_modes["metaworld_robot"]
    processor.normalization_modes = {**processor.normalization_modes, "strong_arm": of_key}
    processor.action_names = {**processor.action_names, "strong_arm": ["x", "y", "z", "gripper"]}
    without = make_untrained()
    without.processor.statistics = {}
    for name, policy in {"two_robots": two_robots, "oft": make_untrained(oft), "no_statistics": without}.items():
        policy.model.save_pretrained(folder / name)
        policy.processor.save_pretrained(folder / name)
    return {name: folder / name for name in ("two_robots", "oft", "no_statistics")}


@pytest.fixture(scope="session")
def endless_log(tmp_path_factory) -> Path:
    """What the app's simulator "endless" writes when it is opened and closed."""
    return tmp_path_factory.mktemp("endless") / "log.txt"


@pytest.fixture(scope="session")
def app(models, endless_log) -> str:
    """The running app's address."""
    simulator = str(Path(__file__).with_name("endless_simulator.py"))
    with running_app(str(models["two_robots"]), HF_VLA_IMPORT=simulator, ENDLESS_LOG=str(endless_log)) as address:
        yield address


@pytest.fixture(scope="session")
def chromium():
    with open_chromium() as browser:
        yield browser


@pytest.fixture
def open_page(chromium):
    """A function that opens an address; at the end no page may have complained, or asked another host for anything."""
    pages, troubles = [], []

    def on_request(request):
        if not request.url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            troubles.append(f"request to {request.url}")

    def open_at(address: str, size: tuple[int, int] = DESKTOP):
        context = chromium.new_context(viewport={"width": size[0], "height": size[1]})
        page = context.new_page()
        page.set_default_timeout(120_000)
        page.on("console", lambda m: troubles.append(f"console: {m.text}") if m.type == "error" else None)
        page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
        page.on("request", on_request)
        pages.append(page)
        page.goto(address)
        page.wait_for_selector("#predict")
        return page

    yield open_at
    for page in pages:
        page.context.close()
    assert troubles == []


@pytest.fixture
def screenshot():
    """A function that keeps a picture of the page, or of what is seen of it."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)

    def take(page, name: str, full_page: bool = True) -> None:
        page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=full_page)

    return take
