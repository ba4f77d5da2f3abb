"""The page in a browser: as it looked when someone last looked, accessible, printed whole, and harmless.

What it shows is made up and the same everywhere, and so is its font, matplotlib's own: so its pictures can be compared
with those in pages/, in gray, an eighth of the size. `python tests/study/test_pages.py` writes them anew; then look.
"""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import math
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, Browser, browser
from matplotlib import font_manager
from PIL import Image

from teacherless.cli import main
from teacherless.files import disk
from teacherless.runs.config import Run
from teacherless.study import report

PAGES = Path(__file__).parent / "pages"
KINDS = [(width, dark) for width in (1280, 390) for dark in (False, True)]
SMALLER = 8  # times, in pages/
TOLERANCE = 0.45  # mean difference of 255 grays; as drawn twice as large and made smaller, the same page has 0.2 to 0.4

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium here")


def made(out: Path) -> Path:
    """The folder of a comparison that nobody ran: plain and dml, three seeds, eight epochs."""
    for row, students, gain in (("plain", ["student"], 0.0), ("dml", ["peer0", "peer1"], 1.5)):
        for seed in range(3):
            folder = out / "cells" / f"{row}-s{seed}"
            run = Run(method=row, seed=seed, epochs=8, peers=None if row == "plain" else 2)
            data = {"name": "digits", "fingerprint": "0123456789abcdef", "classes": 10, "test": 360}
            disk.write_json(folder / "run.json", {
                "settings": run.model_dump(mode="json"), "data": data, "engine": "loop", "amp": None, "epochs": 8,
                "device": "cpu", "commit": "0000000", "versions": {"teacherless": "0", "torch": "0", "python": "0"},
            })  # fmt: skip
            lines = []
            for epoch in range(8):
                nll = 0.2 + 2 * math.exp(-epoch / (2 + gain / 5)) + 0.05 * seed
                line = {
                    "epoch": epoch,
                    "step": epoch,
                    "seconds": 1.0 + (row == "dml"),
                    "train/loss": nll,
                    "train/ce": nll,
                }
                if row == "dml":
                    line |= {"train/mimicry": 0.1 * (epoch + 1), "train/loss": nll + 0.1 * (epoch + 1)}
                for i, name in enumerate(students):
                    line |= {f"{part}/nll/{name}": nll + 0.1 * i + 0.1 * (part == "val") for part in ("train", "val")}
                    line |= {f"{part}/top1/{name}": 95 - 30 * nll + i + gain for part in ("train", "val")}
                    line |= {f"{part}/entropy/{name}": nll / 2 for part in ("train", "val")}
                lines.append(json.dumps(line) + "\n")
            disk.write(folder / "metrics.jsonl", "".join(lines))
            each = {
                name: {"params": 94186, "val_top1": 93.0 + gain + i, "test_nll": 0.3 - gain / 50, "test_ece": 3.0,
                       "test_top1": 92.0 + seed / 4 + gain * (1 + seed / 4) + i / 4}
                for i, name in enumerate(students)
            }  # fmt: skip
            ended = {"finding": "training ended too early", "advice": "more --epochs",
                     "evidence": "validation accuracy rose from 80.0 to 84.0 % in the last 1 of 8 epochs"}  # fmt: skip
            disk.write_json(folder / "summary.json", {
                "method": row, "epochs": 8, "steps": 8, "chosen": students[0], "train_seconds": 8.0, "ensemble": None,
                "students": each, "doctor": [ended],
            })  # fmt: skip
    settings = Run(method="plain", epochs=8).model_dump(mode="json") | {"methods": ["plain", "dml"], "seeds": 3}
    size = {"params": 94186, "flops": 1_200_000, "ms": 0.22, "low_ms": 0.2, "high_ms": 0.3}
    rows = {row: {"churn": churn, "inference": size} for row, churn in (("plain", 5.0), ("dml", 3.5))}
    disk.write_json(out / "compare.json", {"settings": settings, "methods": rows})
    squares = "".join(f"<rect x='{20 * i}' width='18' height='18' fill='#{i}{i}{i}'/>" for i in range(10))
    disk.write(out / "often-wrong.svg", f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 200 20'>{squares}</svg>")
    return out


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report.write(made(tmp_path_factory.mktemp("comparison")))


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(autouse=True)
def nothing_is_reported_or_asked_for(chromium: Browser) -> Iterator[None]:
    yield
    said, asked, opened = chromium.said, [url for url in chromium.asked if not url.startswith("file:")], chromium.opened
    chromium.said, chromium.asked, chromium.opened = [], [], []
    assert said == asked == opened == []


def small(png: bytes) -> Image.Image:
    found = Image.open(io.BytesIO(png)).convert("L")
    return found.resize((found.width // SMALLER, found.height // SMALLER), Image.Resampling.BOX)


def picture(chromium: Browser, page: Path, width: int, dark: bool, style: str = "", scale: float = 1) -> bytes:
    """The whole page in matplotlib's font, and with a style of the test's own."""
    font = base64.b64encode(Path(font_manager.findfont("DejaVu Sans")).read_bytes()).decode()
    face = f"@font-face {{ font-family: Ours; src: url(data:font/ttf;base64,{font}); }}"
    chromium.call("Page.setBypassCSP", enabled=True)
    chromium.open(page, width, dark=dark)
    chromium.run(f"""document.head.insertAdjacentHTML("beforeend",
        `<style>{face} * {{ font-family: Ours !important; }} {style}</style>`); document.fonts.load("16px Ours")""")
    assert chromium.run("document.fonts.check('16px Ours')")
    chromium.call("Page.setBypassCSP", enabled=False)
    return chromium.picture(scale)


def file_of(width: int, dark: bool) -> Path:
    return PAGES / f"comparison-{width}-{'dark' if dark else 'light'}.png"


def difference(png: bytes, width: int, dark: bool) -> float:
    """From the picture in pages/: the mean over all pixels, or no end where it is of another height."""
    found, expected = small(png), Image.open(file_of(width, dark))
    if abs(found.height - expected.height) > 0.08 * expected.height:
        return math.inf
    same = found.resize(expected.size, Image.Resampling.BOX)  # another font's lines are higher or lower
    return float(np.abs(np.asarray(same, dtype=float) - np.asarray(expected, dtype=float)).mean())


@pytest.mark.parametrize(("width", "dark"), KINDS)
def test_it_looks_as_it_did(chromium: Browser, page: Path, width: int, dark: bool) -> None:
    assert difference(picture(chromium, page, width, dark), width, dark) < TOLERANCE
    assert chromium.run("document.documentElement.scrollWidth") <= width, "nothing is wider than the window"


@pytest.mark.parametrize("style", [
    "svg path { stroke: none !important; }", "svg path { fill: black !important; }", "table { display: none; }",
    "figcaption { display: none; }", ":root { --paper: #222 !important; }",
])  # fmt: skip
def test_a_spoilt_page_is_noticed(chromium: Browser, page: Path, style: str) -> None:
    assert difference(picture(chromium, page, 1280, True, style), 1280, True) > TOLERANCE


def test_the_script_has_run(chromium: Browser, page: Path) -> None:
    chromium.open(page)
    assert "copy as CSV" in chromium.run("document.body.innerText")
    assert chromium.run("document.scripts.length") == 1
    chromium.run("document.querySelector('figure[data-reads] svg').focus()")
    assert chromium.run("document.querySelector('figure[data-reads] output').textContent").startswith("epoch 8: plain ")
    chromium.run("document.querySelectorAll('thead button')[2].click()")
    order = "[...document.querySelectorAll('tbody th')].slice(0, 2).map((cell) => cell.textContent).join()"
    assert chromium.run(order) == "dml,plain"


@pytest.mark.parametrize(("width", "dark"), KINDS)
def test_axe_finds_nothing_serious(chromium: Browser, page: Path, width: int, dark: bool) -> None:
    spec = importlib.util.find_spec("axe_playwright_python")
    if spec is None or spec.origin is None:
        pytest.skip("axe-core is not installed (the package axe-playwright-python has it)")
    chromium.open(page, width, dark=dark)
    chromium.run(Path(spec.origin).with_name("axe.min.js").read_text(encoding="utf-8") + "; 0")
    found = json.loads(chromium.run("axe.run().then((found) => JSON.stringify(found))"))
    assert len(found["passes"]) > 10
    assert [(each["id"], each["nodes"][0]["html"]) for each in found["violations"]] == []


def test_it_prints_whole(chromium: Browser, page: Path) -> None:
    chromium.open(page)
    assert chromium.run("document.querySelectorAll('details:not([open])').length") == 2
    pages = re.findall(rb"/Type\s*/Page\b", chromium.pdf())
    assert len(pages) > 1 and chromium.run("document.querySelectorAll('details:not([open])').length") == 0
    chromium.open(page, 700)  # of A4 within its margins
    chromium.call("Emulation.setEmulatedMedia", media="print")
    chromium.run("dispatchEvent(new Event('beforeprint'))")
    wide = "[...document.querySelectorAll('.wide, pre')].filter((e) => e.scrollWidth > e.clientWidth + 1).length"
    assert chromium.run("document.documentElement.scrollWidth") <= 700 and chromium.run(wide) == 0
    chromium.call("Emulation.setEmulatedMedia", media="")


def test_a_class_that_is_called_like_code(chromium: Browser, tmp_path: Path) -> None:
    """A folder of images with such names, trained, evaluated and shown. A slash is in no folder's name."""
    g = np.random.default_rng(0)
    for name in ("<script>alert(1)<|script>", "<img src=x onerror=alert(1)>", "'\"><svg onload=alert(1)>"):
        for part, count in (("train", 12), ("val", 5), ("test", 5)):
            folder = tmp_path / "photos" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(g.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    data = ["--data", str(tmp_path / "photos"), "--student", "small-cnn,width=4", "--epochs", "2", "-b", "12"]
    assert main(["train", "dml", *data, "--peers", "2", "--out", str(tmp_path / "run")]) == 0
    assert main(["evaluate", str(tmp_path / "run"), "--split", "val"]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    finding = {"finding": "no student learns class <script>alert(1)</script>", "evidence": "e", "advice": "a"}
    disk.write_json(tmp_path / "run" / "summary.json", summary | {"doctor": [*summary["doctor"], finding]})
    chromium.open(report.write(tmp_path / "run"))
    assert "learns class <script>alert(1)</script>" in chromium.run("document.body.innerText")
    assert chromium.run("document.querySelectorAll('script, [onerror], [onload]').length") == 1


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as there:
        address = report.write(made(Path(there) / "c"))
        with browser(Path(there) / "profile") as shown:
            for size, night in KINDS:
                small(picture(shown, address, size, night)).save(file_of(size, night), optimize=True)
