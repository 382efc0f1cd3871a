"""The page itself: complete, closed, bounded, and shown by a real browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from pipelines.report.build import build
from pipelines.report.command import report
from pipelines.report.media import Album
from sama.errors import InputError

SECTIONS = ["summary", "ledger", "funnel", "footage", "kept", "rejected", "refused", "mixture", "training", "time",
            "strips", "edits", "provenance"]  # fmt: skip
VOID = {"meta", "img", "br", "rect", "line", "path", "circle"}


class Reader(HTMLParser):
    """Tags in order, with a check that every one is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):  # a browser writes these without an end
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def page(made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "report.html"
    written = build(str(made.root), [str(r) for r in made.runs], str(out), "demo", str(made.edits), "Demo & report")
    assert written == str(out)
    return out


def test_every_section_is_there_and_closed(page: Path) -> None:
    found = Reader(page.read_text())
    assert [a["id"] for t, a in found.tags if t == "section" and a.get("id")] == SECTIONS
    anchors = [(a["href"] or "")[1:] for t, a in found.tags if t == "a"]
    assert set(anchors) <= set(SECTIONS)
    assert "Demo & report" in found.words
    images = [a["src"] or "" for t, a in found.tags if t == "img"]
    assert len(images) > 40
    assert all(s.startswith("data:image/jpeg;base64,") for s in images)
    assert sum(t == "video" for t, _ in found.tags) == 2
    assert page.stat().st_size < 20e6


def test_nothing_from_data_becomes_markup_or_an_address(page: Path) -> None:
    html = page.read_text()
    found = Reader(html)
    assert not any(t in ("script", "link", "iframe", "object", "form", "base") for t, _ in found.tags)
    assert not any(name.startswith("on") for _, a in found.tags for name in a)
    for _, attributes in found.tags:
        for name in ("src", "href", "xlink:href", "action", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#"))
    assert "url(" not in html
    assert "@import" not in html
    assert "&lt;script&gt;document.title" in html  # it is shown, as text
    policy = next(a["content"] or "" for t, a in found.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_a_ledger_that_does_not_add_up_is_loud(made, page: Path, tmp_path: Path) -> None:
    assert "Every sample is accounted for" in page.read_text()
    root = tmp_path / "root"
    shutil.copytree(made.root, root)
    next((root / "rejects" / "ditto-1m").glob("*.parquet")).unlink()
    html = Path(build(str(root), out=str(tmp_path / "r.html"), media=False)).read_text()
    assert "The ledger does not add up" in html
    assert 'class="banner bad"' in html
    assert "ditto-1m: 14 rows in the manifest, but 12 in the index and 0 rejects make 12" in html


def test_no_media_writes_no_pictures(made, tmp_path: Path) -> None:
    out = tmp_path / "plain.html"
    build(str(made.root), [str(made.runs[0])], str(out), edits_folder=str(made.edits), media=False)
    html = out.read_text()
    assert "data:image" not in html
    assert "data:video" not in html
    assert out.stat().st_size < 1e6
    assert "Training loss" in html


def test_pictures_stop_at_the_limit() -> None:
    album = Album(limit=9000)
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    shown = [album.picture(noise, "noise") for _ in range(10)]
    assert album.spent <= 9000
    assert album.left_out > 0
    assert shown[0].startswith("<img")
    assert "left out to keep this page small" in shown[-1]


def test_undecodable_media_is_said_and_does_not_stop_the_page(made, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(made.root, root)
    for shard in (root / "shards").rglob("*.tar"):
        data = shard.read_bytes()
        shard.write_bytes(bytes(len(data) // 3))  # zeros, and shorter than the index says
    html = Path(build(str(root), out=str(tmp_path / "r.html"))).read_text()
    assert "does not decode" in html
    assert "cannot be read" in html


def test_the_command(made, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(report)
    out = tmp_path / "report.html"
    arguments = ["--root", str(made.root), "--selection", "demo", "--out", str(out), "--no-media"]
    done = CliRunner().invoke(app, [*arguments, "--run", str(made.runs[0]), "--run", str(made.runs[1])])
    assert done.exit_code == 0, done.output
    assert "report: " in done.output
    html = out.read_text()
    assert html.index("stage0") < html.index("stage1")
    assert "Example" in CliRunner().invoke(app, ["--help"]).output
    for wrong in (["--run", str(tmp_path / "none")], ["--edits", str(tmp_path / "none")]):
        failed = CliRunner().invoke(app, [*arguments, *wrong])
        assert isinstance(failed.exception, InputError)


@pytest.mark.parametrize("dark", [False, True])
def test_a_real_browser_shows_it(page: Path, tmp_path: Path, dark: bool) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs chromium, which is not installed here")
    picture = tmp_path / "page.png"
    browse(browser, page, tmp_path, f"--screenshot={picture}", "--window-size=1280,2600", *["--force-dark-mode"] * dark)
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    assert pixels.shape[:2] == (2600, 1280)
    assert (pixels[:40, :40].mean() < 60) == dark  # the paper
    colours = len(np.unique(pixels.reshape(-1, 3), axis=0))
    assert colours > 500  # text, charts and pictures, not a blank sheet
    for top in range(0, 2000, 400):
        assert pixels[top : top + 400].std() > 3

    if not dark:
        done = browse(browser, page, tmp_path, "--dump-dom", "--enable-logging=stderr")
        shown = Reader(re.sub(r"<!--.*?-->", "", done.stdout, flags=re.S).removeprefix("<!DOCTYPE html>"))
        assert [a["id"] for t, a in shown.tags if t == "section" and a.get("id")] == SECTIONS
        assert "Demo & report" in shown.words  # no title was changed by a script from the data
        assert not any(t == "script" for t, _ in shown.tags)
        assert "CONSOLE" not in done.stderr  # no script error, nothing that the page's own policy had to block


def browse(browser: str, page: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Headless, and without the errands that a browser runs by itself."""
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync", "--hide-scrollbars",
             f"--user-data-dir={folder / 'profile'}"]  # fmt: skip
    done = subprocess.run([browser, *quiet, *options, page.as_uri()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done
