"""Pictures of the demo for the README, made from the running app in a headless Chromium.

python docs/picture_demo.py --model outputs/quickstart/policy --output docs/images
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

from PIL import Image

from hf_vla.commands.parser import ArgumentParser, one_line_errors

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Chromium asks nobody but the app.
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
TASKS = ("button-press-topdown", "window-open", "drawer-open")  # the quickstart's
DESKTOP, PHONE = (1280, 900), (390, 844)
_SECONDS = 300


@contextmanager
def running_app(model: str = "", log: Path | None = None, **environment: str) -> Iterator[str]:
    """Start the app on a free port and yield its address; `environment` is added to this process's.

    Raises:
        OSError: it does not answer; the message ends with its log.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    settings = {"MODEL_ID": model, "GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port), **environment}
    with tempfile.TemporaryDirectory() as folder:
        log = log or Path(folder) / "app.log"
        with open(log, "w") as file:
            app = subprocess.Popen(
                [sys.executable, "-m", "hf_vla", "demo"], stdout=file, stderr=file, env=os.environ | settings
            )
        try:
            _wait(app, address, log)
            yield address
        finally:
            app.terminate()
            try:
                app.wait(timeout=10)
            except subprocess.TimeoutExpired:
                app.kill()
                app.wait()


def _wait(app: subprocess.Popen, address: str, log: Path) -> None:
    end = time.monotonic() + _SECONDS
    while app.poll() is None and time.monotonic() < end:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            time.sleep(0.3)
    raise OSError(f"the app does not answer; its log ends with: {log.read_text()[-2000:]}")


@contextmanager
def open_chromium():
    """Yield the system's Chromium or Chrome as a playwright browser with a profile of its own.

    Raises:
        OSError: there is none.
    """
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if found is None:
        raise OSError("there is no Chromium; install Debian's package chromium, then run this again")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=list(_FLAGS))
        try:
            yield browser
        finally:
            browser.close()


def predict(page) -> None:
    """Press "Predict" and wait for the chunk."""
    page.get_by_role("tab", name="Predict").click()
    chunk = "document.querySelector('#predict-details a.download')?.href"
    before = page.evaluate(chunk)
    page.click("#predict")
    page.wait_for_function(f"before => {chunk} && {chunk} != before", arg=before)
    page.wait_for_selector("#predict-plots img")
    page.wait_for_timeout(500)


def choose(page, name: str, option: str) -> None:
    """Choose from a dropdown."""
    page.locator(f"#{name} input").click()
    page.get_by_role("option", name=option, exact=True).click()


def watch(page, limit: int = 250, task: str = "drawer-open") -> str:
    """Watch an episode to its end and return its outcome."""
    page.get_by_role("tab", name="Watch").click()
    choose(page, "task", task)
    past = page.locator("#strip .episode").count()
    page.fill("#limit input[type=number]", str(limit))
    page.press("#limit input[type=number]", "Tab")
    page.click("#watch")
    page.wait_for_function(
        "past => document.querySelectorAll('#strip .episode').length > past", arg=past, timeout=1000 * _SECONDS
    )
    return page.inner_text("#screen .outcome")


def film(page, tasks: Sequence[str]) -> list[list[Image.Image]]:
    """Watch an episode of each task and return every frame that was streamed, with what lies over it."""
    # Kept by the page and drawn afterwards: taking pictures would slow the episode down and miss most of it.
    page.evaluate("""() => {
        window.film = [];
        new MutationObserver(() => {
            const watch = document.querySelector("#screen .watch");
            if (watch && watch.outerHTML !== window.film.at(-1)) window.film.push(watch.outerHTML);
        }).observe(document.body, {childList: true, subtree: true, characterData: true});
    }""")
    episodes = []
    for task in tasks:
        page.evaluate("window.film = []")
        watch(page, task=task)
        pictures = []
        for frame in page.evaluate("window.film"):
            page.evaluate("frame => { document.querySelector('#screen .watch').outerHTML = frame }", frame)
            pictures.append(Image.open(BytesIO(page.locator("#screen .watch").screenshot())).convert("RGB"))
        episodes.append(pictures)
    return episodes


def look_inside(page) -> None:
    """Press "Look inside" and wait for the heat maps."""
    page.get_by_role("tab", name="Look inside").click()
    page.click("#look")
    page.wait_for_selector("#maps table")
    page.wait_for_timeout(500)


def save_film(episodes: list[list[Image.Image]], path: Path, width: int = 320) -> None:
    """Write the episodes as an endless WebP at half the simulator's speed, each one's end for two seconds."""
    frames, durations = [], []
    for pictures in episodes:
        frames += [picture.resize((width, width), Image.Resampling.LANCZOS) for picture in pictures]
        durations += [50] * (len(pictures) - 1) + [2000]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0, quality=60, method=6)


def save_picture(page, path: Path) -> None:
    """The whole page as a PNG of 256 colours."""
    picture = Image.open(BytesIO(page.screenshot(full_page=True))).convert("RGB")
    palette = picture.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=2)  # small areas keep their colour
    picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="outputs/quickstart/policy", help="folder or Hub repository")
    parser.add_argument("--output", default="docs/images", help="folder for the pictures")
    with one_line_errors():
        arguments = parser.parse_args()
        output = Path(arguments.output)
        output.mkdir(parents=True, exist_ok=True)
        with running_app(arguments.model) as address, open_chromium() as browser:
            page = browser.new_page(viewport=dict(zip(("width", "height"), DESKTOP, strict=True)))
            page.goto(address)
            page.wait_for_selector("#predict")
            predict(page)
            save_picture(page, output / "demo-predict.png")
            save_film(film(page, TASKS), output / "demo-watch.webp")
            save_picture(page, output / "demo-watch.png")
            look_inside(page)
            save_picture(page, output / "demo-look-inside.png")


if __name__ == "__main__":
    main()
