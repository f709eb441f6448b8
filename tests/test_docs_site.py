"""The documentation's site builds strictly, asks no other host for anything, and holds every page and figure."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from draw_figures import figures

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    folder = tmp_path_factory.mktemp("site")
    # No network is needed: a proxy that isn't there would be the error of whoever asks.
    environment = os.environ | {
        "NO_MKDOCS_2_WARNING": "1",
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "HTTP_PROXY": "http://127.0.0.1:9",
    }
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


@pytest.mark.slow
def test_every_page_is_in_the_site_and_its_navigation(site):
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")} - {"README"} | {"index"}
    assert {page.stem for page in site.glob("*.html")} - {"404"} == pages
    start = (site / "index.html").read_text(encoding="utf-8")
    assert {name for name in pages if f'href="{name}.html"' in start} | {"index"} == pages


@pytest.mark.slow
def test_no_page_asks_another_host(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(
            r'<(?:script|img|iframe)[^>]*\ssrc="(https?:[^"]+)"|<link[^>]*\shref="(https?:[^"]+)"', text
        )
        assert not loaded, f"{page.name} loads {loaded}"


@pytest.mark.slow
def test_docstrings_are_in_the_reference(site):
    text = (site / "api.html").read_text(encoding="utf-8")
    for name in ("from_pretrained", "predict_action", "unnormalize_actions", "VLATrainer", "register_framework"):
        assert name in text
    assert "[<code>~" not in text and "&gt;&gt;&gt;" in text


@pytest.mark.parametrize("name", sorted(figures()))
def test_figures_are_as_drawn(name):
    """`python docs/draw_figures.py` makes them."""
    assert (ROOT / "docs" / "images" / f"{name}.svg").read_text(encoding="utf-8") == figures()[name]
