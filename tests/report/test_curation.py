"""Scores, thresholds that move, borderline samples and their size in a page."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.selection import write_root as write_many
from pipelines import config
from pipelines.curate.rules import Rules
from pipelines.curate.select import read_selection, select
from pipelines.demo import world
from pipelines.report import curation
from pipelines.report.build import build
from pipelines.samples import storage, tables
from pipelines.samples.index import read_index
from tests.curate.samples import signals_entry, write_media_root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Eight pairs whose blur rises and whose kept structure falls; two lack a score that the rules name."""
    clips = {}
    for i in range(8):
        scene = world.random_scene(i)
        clips[f"p{i}"] = (
            world.render(scene, 17, 96, 128),
            world.render(world.edit_scene(scene, "recolour", i)[0], 17, 96, 128),
        )
    where = write_media_root(tmp_path_factory.mktemp("curation") / "root", clips)
    rows = [r | {"category": "replace"} for r in read_index(where).to_pylist()]
    for uri in storage.list_files(storage.join(where, "index"), ".parquet", recursive=True):
        storage.remove(uri)
    storage.write_part(storage.join(where, "index", "toys"), pa.Table.from_pylist(rows, schema=tables.INDEX))
    signals = [
        signals_entry(r, blur_target=0.3 + 0.06 * i, structure_kept=0.99 - 0.06 * i, nsfw_score=0.9 if i == 0 else 0.1,
                      flicker=None if i in (1, 2) else 0.5, seconds=2.0)
        for i, r in enumerate(rows)
    ]  # fmt: skip
    failed = signals_entry(rows[7], status="failed", error_stage="decode", error_type="MediaError", error="<b>torn</b>")
    storage.write_part(storage.join(where, "signals", "toys"),
                       pa.Table.from_pylist([*signals[:7], failed], schema=tables.SIGNALS))  # fmt: skip
    select(where, "first", config.load(Rules, None, ["video_edit.thresholds.flicker.max=2"]))
    return where


def facts(root: str) -> curation.Curation:
    return curation.read(root, "first", read_selection(root, "first"))


def test_the_page_counts_what_the_selection_kept(root: str):
    found = facts(root)
    decisions = read_selection(root, "first")["decision"].to_pylist()
    assert curation.kept(found) == decisions.count("kept") == 3
    names = [s.name for s in found.scores]
    assert {"structure_kept", "blur_target", "flicker"} <= set(names)
    structure = names.index("structure_kept")
    assert curation.kept(found, {structure: 0}) == 4  # p5 fails it alone; p1 and p2 have no flicker, p6 is blurred too
    assert curation.kept(found, {structure: curation.LEVELS - 1}) == 0
    assert found.failures == [("toys", "decode", "MediaError", 1, "<b>torn</b>")]
    assert found.cost["signals"]["rows"] == 8
    near = {(r["score"], r["decision"], r["key"]) for r in found.borderline}
    assert ("structure_kept", "rejected", "toys-p5") in near
    assert not any(k == "toys-p6" for _, _, k in near)  # two reasons keep it out


def test_levels_keep_their_side_of_the_threshold():
    rng = np.random.default_rng(0)
    values = np.append(rng.normal(0.5, 0.3, 2000), [0.65, np.nextafter(0.65, 0), np.nextafter(0.65, 1)])
    edge = curation.threshold_level(0.65, 0.0, 1.0)
    low = curation.level(values, 0.65, "min", 0.0, 1.0)
    high = curation.level(values, 0.65, "max", 0.0, 1.0)
    np.testing.assert_array_equal(low >= edge, values >= 0.65)
    np.testing.assert_array_equal(high <= edge, values <= 0.65)
    assert max(low.max(), high.max()) < curation.LEVELS


def test_unsafe_pictures_are_blurred_and_no_media_shows_none(root: str, tmp_path: Path):
    assert curation.unsafe(root, [f"toys-p{i}" for i in range(8)], 0.5) == {"toys-p0"}
    page = Path(build(root, out=str(tmp_path / "r.html"), selection="first")).read_text()
    assert page.count("data:image/webp") >= 4
    assert "&lt;b&gt;torn" in page
    plain = Path(build(root, out=str(tmp_path / "p.html"), selection="first", media=False)).read_text()
    assert "data:image" not in plain
    assert 'type="range"' in plain


def test_a_blurred_clip_says_nothing(root: str):
    from PIL import Image

    from pipelines.curate.gallery import looping

    row = read_index(root).to_pylist()[0]
    sharp, soft = (
        np.asarray(Image.open(__import__("io").BytesIO(looping(row, blur))).convert("L"), float)
        for blur in (False, True)
    )
    assert sharp.shape == soft.shape
    steps = [np.abs(np.diff(x[:, : x.shape[1] // 2 - 6], axis=1)).max() for x in (sharp, soft)]
    assert steps[1] < steps[0] / 2


def test_the_sliders_work_in_a_real_browser(root: str, tmp_path: Path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs chromium, which is not installed here")
    found = facts(root)
    structure = [s.name for s in found.scores].index("structure_kept")
    page = Path(build(root, out=str(tmp_path / "r.html"), selection="first", media=False)).read_text()

    def total(html: str) -> int:
        (tmp_path / "shown.html").write_text(html)
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
                   "--enable-logging=stderr", "--dump-dom", (tmp_path / "shown.html").as_uri()]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert "CONSOLE" not in done.stderr, done.stderr
        return int(re.search(r'id="what-if-total">(\d+)<', done.stdout).group(1))  # type: ignore[union-attr]

    assert total(page) == 3
    for level in (0, 200, curation.LEVELS - 1):
        move = f'<script>const s=document.getElementById("what-if-{structure}");s.value={level};'
        move += 's.dispatchEvent(new Event("input"))</script></body>'
        moved = re.sub(r"<meta[^>]*Content-Security-Policy[^>]*>", "", page).replace("</body>", move)
        assert total(moved) == curation.kept(found, {structure: level})
    blocked = page.replace(
        "</body>", '<script>document.getElementById("what-if-total").textContent="99"</script></body>'
    )
    (tmp_path / "evil.html").write_text(blocked)
    with pytest.raises(AssertionError, match="Content Security Policy"):
        total(blocked)


@pytest.mark.slow
def test_a_page_over_a_hundred_thousand_samples_stays_small(tmp_path: Path):
    root = str(tmp_path / "root")
    write_many(root, 100_000, 3)
    summary = select(root, "first")
    out = Path(build(root, out=str(tmp_path / "r.html"), selection="first"))
    assert out.stat().st_size < 20e6
    found = curation.read(root, "first", read_selection(root, "first"))
    assert found.packed == summary["rows"] == sum(summary["decisions"].values())
    assert curation.kept(found) == summary["decisions"]["kept"]
