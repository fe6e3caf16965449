"""The report in a real browser: nothing to complain of, something to see, in light, in dark and on paper."""

from __future__ import annotations

import runpy
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmvp_ray.report.diff_html import render_diff_html
from mmvp_ray.report.html import render_html
from mmvp_ray.report.thumbnails import thumbnail

_CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_UNIT = Path(__file__).parents[1] / "unit"

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(_CHROMIUM is None, reason="no Chromium on PATH; apt-get install chromium"),
]


def browse(page: Path, profile: Path, *flags: str) -> list[str]:
    """What the browser's console says about a page: refused content, errors, warnings."""
    command = [
        str(_CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
        "--hide-scrollbars",
        "--enable-logging=stderr",
        f"--user-data-dir={profile}",
        *flags,
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def report_html() -> str:
    example = runpy.run_path(str(_UNIT / "test_report_example.py"))
    report = example["example_report"](hostile=True)
    pictures = {image_id: thumbnail(image) for image_id, image in example["example_pictures"](report).items()}
    return render_html(report, pictures)


def diff_html() -> str:
    example = runpy.run_path(str(_UNIT / "test_report_diff.py"))
    diff = example["example_diff"](hostile=True)
    return render_diff_html(diff, example["diff_pictures"](diff))


@pytest.fixture(scope="module", params=[report_html, diff_html], ids=["report", "diff"])
def page(request, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(request.param(), encoding="utf-8")
    return path


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 1200), ("light", 500)])
def test_the_page_is_drawn_without_complaint(page, tmp_path, scheme, width):
    picture = tmp_path / "page.png"
    flags = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    console = browse(
        page,
        tmp_path / "profile",
        f"--screenshot={picture}",
        f"--window-size={width},3600",
        *flags,
    )
    assert console == []
    pixels_HWC = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    assert pixels_HWC.shape == (3600, width, 3)
    paper = pixels_HWC[3, 3]
    assert (paper.mean() > 240) if scheme == "light" else (paper.mean() < 40)
    is_inked_HW = np.abs(pixels_HWC - paper).max(axis=2) > 60
    assert all(0.005 < band.mean() < 0.9 for band in np.array_split(is_inked_HW, 6))


def test_the_page_prints(page, tmp_path):
    printed = tmp_path / "page.pdf"
    assert browse(page, tmp_path / "profile", f"--print-to-pdf={printed}") == []
    content = printed.read_bytes()
    assert content.startswith(b"%PDF-")
    assert 3 <= content.count(b"/Type /Page\n") <= 20
    assert b"/Subtype /Image" in content


def test_the_console_would_have_told(page, tmp_path):
    """Without this, an empty console would prove nothing."""
    guarded = tmp_path / "guarded.html"
    html = page.read_text(encoding="utf-8")
    guarded.write_text(
        html.replace("</main>", "<img src='https://example.invalid/x.png'></main>"),
        encoding="utf-8",
    )
    console = browse(guarded, tmp_path / "profile", "--dump-dom")
    assert any("Content Security Policy" in line for line in console)
