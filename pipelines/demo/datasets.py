"""The procedural world written to disk as five public data sets lie there, with some bad samples among them.

Layouts as in the adapters of `pipelines/ingest`: Ditto-1M, OpenVE-3M, ReCo-Data, NHR-Edit, Koala-36M. The
clips are real H.264 files. What is wrong with a bad sample is returned, so that a test or a reader of the
report can look whether curation found it.
"""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial

import numpy as np

from pipelines.demo import world
from pipelines.progress import track
from pipelines.samples import storage
from sama import video
from sama.errors import InputError

VERSION = 1  # of the files written; raise it when they change
FRAMES = 33
SIZES = ((96, 128), (96, 144), (96, 160), (128, 96), (112, 112))  # height, width


@dataclass(frozen=True)
class Sizes:
    """Manifest rows per data set, bad ones included."""

    ditto: int = 24
    openve: int = 24
    reco: int = 24
    nhr: int = 32
    koala: int = 40


@dataclass(frozen=True)
class Clip:
    """One pair (or lone clip: source only) to draw, and the fault it is given."""

    scene: world.Scene
    edited: world.Scene | None
    height: int
    width: int
    frames: int
    fps: float
    fault: str | None = None


def write_world(folder: str, seed: int = 0, sizes: Sizes | None = None) -> dict[str, dict]:
    """Write all five data sets below `folder`; files that are there already are kept, so a killed run goes on.

    Returns per dataset name: folder, rows (of its manifests) and bad (upstream id -> fault). Faults that ingest
    rejects: corrupt, truncated, missing_source, missing_target, no_instruction, no_caption, duplicate. Faults that
    selection finds: unequal_frames, identical, static, shot_cut, black_border, blurred, too_short.
    """
    sizes = sizes or Sizes()
    root = storage.absolute(folder)
    marker = storage.join(root, "world.json")
    facts = {"version": VERSION, "seed": seed}
    if storage.exists(marker) and (known := json.loads(storage.read_bytes(marker))) != facts:
        raise InputError(f"{folder} holds the world of {known}, not of {facts}: take another folder")
    storage.write_bytes(marker, json.dumps(facts) + "\n")
    jobs: list[Write] = []
    made = {}
    for writer, folder_name, count in _writers(sizes):
        dataset, files, about = writer(storage.join(root, folder_name), seed, count)
        jobs += files
        made[dataset] = {"folder": storage.join(root, folder_name), **about}
    # drawing and encoding take a core each; spawned, because the caller may have threads (Ray, torch)
    workers = min(4, os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = [pool.submit(job) for job in jobs]
        for done in track(as_completed(waiting), total=len(jobs), label="demo data", unit="files"):
            done.result()
    return made


Write = Callable[[], object]
Plan = tuple[str, list[Write], dict]  # dataset, files to write, {rows, bad}


def _writers(sizes: Sizes) -> list[tuple[Callable[[str, int, int], Plan], str, int]]:
    return [
        (_ditto, "Ditto-1M", sizes.ditto),
        (_openve, "OpenVE-3M", sizes.openve),
        (_reco, "ReCo-Data", sizes.reco),
        (_nhr, "NHR-Edit", sizes.nhr),
        (_koala, "Koala-36M", sizes.koala),
    ]


def _ditto(root: str, seed: int, count: int) -> Plan:
    subsets = {
        "global_style1": "style",
        "global_style2": "style",
        "global_freeform1": "background",
        "local": "recolour",
    }
    faults = {1: "corrupt", 4: "missing_target", 7: "no_instruction", 10: "identical"}
    files: list[Write] = []
    bad: dict[str, str] = {}
    lists: dict[str, list[dict]] = {s: [] for s in subsets}
    for i in range(count):
        subset = list(subsets)[i % len(subsets)]
        clip, words = _pair(seed, 1, i, subsets[subset], fps=20.0, fault=faults.get(i))
        name = f"{seed:04x}{i:04x}"
        source, edited = f"source/{name}.mp4", f"{subset}/{name}_1.mp4"
        files += _pair_files(clip, f"{root}/videos/{source}", f"{root}/videos/{edited}")
        lists[subset].append({"source_path": source, "instruction": words, "edited_path": edited})
        bad |= {f"{name}_1": clip.fault} if clip.fault else {}
    for subset, rows in lists.items():
        files.append(_text(f"{root}/training_metadata/{subset}.json", json.dumps(rows, indent=1)))
    return "ditto-1m", files, {"rows": count, "bad": bad}


def _openve(root: str, seed: int, count: int) -> Plan:
    categories = {
        "global_style": "style", "background_change": "background", "local_change": "recolour",
        "local_add": "add", "local_remove": "remove",
    }  # fmt: skip
    faults = {2: "unequal_frames", 5: "shot_cut", 6: "truncated", 8: "duplicate", 11: "identical"}
    files: list[Write] = []
    bad: dict[str, str] = {}
    tables: dict[str, list[list[str]]] = {c: [["video", "prompt", "original_video"]] for c in categories}
    for i in range(count):
        category = list(categories)[i % len(categories)]
        table = tables[category]
        if faults.get(i) == "duplicate" and len(table) > 1:
            table.append(table[-1])
            bad[f"{category}-{table[-1][0].split('/')[-1].removesuffix('.mp4')} (second row)"] = "duplicate"
            continue
        # four frames more than the others: this data set loses its first four (frame policy)
        clip, words = _pair(seed, 2, i, categories[category], frames=FRAMES + 4, fault=faults.get(i))
        source, edited = f"{category}/src{i:05d}.mp4", f"{category}/edit{i:05d}.mp4"
        files += _pair_files(clip, f"{root}/videos/{source}", f"{root}/videos/{edited}")
        table.append([edited, words, source])
        bad |= {f"{category}-edit{i:05d}": clip.fault} if clip.fault else {}
    for category, table in tables.items():
        files.append(_text(f"{root}/{category}.csv", _csv(table, ";")))
    return "openve-3m", files, {"rows": count, "bad": bad}


def _reco(root: str, seed: int, count: int) -> Plan:
    tasks = ("add", "remove", "replace", "style")
    faults = {1: "black_border", 4: "missing_source", 7: "no_instruction", 10: "too_short"}
    files: list[Write] = []
    bad: dict[str, str] = {}
    lists: dict[str, list[dict]] = {t: [] for t in tasks}
    for i in range(count):
        task = tasks[i % len(tasks)]
        clip, words = _pair(seed, 3, i, task, fault=faults.get(i))
        source = f"{task}/src_videos/{i:06d}.mp4"
        edited = f"{task}/tar_videos/{i:06d}{f'-a_{clip.edited.style}_style' if task == 'style' else ''}.mp4"  # type: ignore[union-attr]
        files += _pair_files(clip, f"{root}/{source}", f"{root}/{edited}")
        lists[task].append({"src_video": source, "tar_video": edited, "instruction_final_refine": words or "none"})
        bad |= {f"{task}-{edited.split('/')[-1].removesuffix('.mp4')}": clip.fault} if clip.fault else {}
    for task, rows in lists.items():
        files.append(_text(f"{root}/{task}/{task}_data_configs.json", json.dumps(rows, indent=1)))
    return "reco-data", files, {"rows": count, "bad": bad}


def _nhr(root: str, seed: int, count: int) -> Plan:
    faults = {2: "truncated", 5: "missing_target", 8: "identical", 11: "no_instruction"}
    files: list[Write] = []
    bad: dict[str, str] = {}
    lines: list[str] = []
    for i in range(count):
        original, number = divmod(i, 2)  # two edits of every original
        edit = world.EDITS[i % len(world.EDITS)]
        clip, words = _pair(seed, 4, original, edit, frames=1, fault=faults.get(i), edit_seed=i)
        base = f"images/{original % 2:02d}/image_{original:03d}"
        source, edited = f"{base}_original.jpg", f"{base}_edited_{number}.jpg"
        files += _pair_files(clip, f"{root}/train/{source}", f"{root}/train/{edited}")
        row = {"source_image": source, "edited_image": edited, "edit_instruction": words, "edit_type": edit}
        lines.append(json.dumps(row))
        bad |= {edited.split("/")[-1].removesuffix(".jpg"): clip.fault} if clip.fault else {}
    files.append(_text(f"{root}/train/metadata.jsonl", "\n".join(lines) + "\n"))
    return "nhr-edit", files, {"rows": count, "bad": bad}


def _koala(root: str, seed: int, count: int) -> Plan:
    faults = {
        2: "static", 5: "shot_cut", 8: "too_short", 11: "missing_target", 14: "no_caption", 17: "corrupt",
        20: "blurred", 23: "black_border",
    }  # fmt: skip
    header = ["videoID", "url", "timestamp", "caption", "clarity_score", "aesthetic_score", "motion_score",
              "video_training_suitability_score"]  # fmt: skip
    files: list[Write] = []
    bad: dict[str, str] = {}
    table = [header]
    for i in range(count):
        scene = world.random_scene(_scene_seed(seed, 5, i))
        height, width = SIZES[i % len(SIZES)]
        clip = Clip(scene, None, height, width, FRAMES, 16.0, faults.get(i))
        name = f"demo{seed:03d}world_{i}"
        caption = "" if clip.fault == "no_caption" else world.describe(scene)
        times = str([f"0:00:{i:02d}.000", f"0:00:{i + 2:02d}.062"])
        table.append([name, f"https://example.com/watch?v={name}", times, caption, "0.9", "4.8", "12.5", "4.5"])
        files += _pair_files(clip, f"{root}/{name}.mp4", None)
        bad |= {name: clip.fault} if clip.fault else {}
    files.append(_text(f"{root}/Koala_36M_1.csv", _csv(table, ",")))
    return "koala-36m", files, {"rows": count, "bad": bad}


def _scene_seed(seed: int, dataset: int, number: int) -> int:
    return (seed * 8 + dataset) * 1_000_000 + number


def _pair(
    seed: int, dataset: int, number: int, edit: str, *, frames: int = FRAMES, fps: float = 16.0,
    fault: str | None = None, edit_seed: int | None = None,
) -> tuple[Clip, str]:  # fmt: skip
    own = _scene_seed(seed, dataset, number)
    scene = world.random_scene(own)
    edited, words = world.edit_scene(scene, edit, own if edit_seed is None else _scene_seed(seed, dataset, edit_seed))
    height, width = SIZES[number % len(SIZES)]
    clip = Clip(scene, edited, height, width, frames, fps, fault)
    return clip, "" if fault == "no_instruction" else words


def _pair_files(clip: Clip, source: str, edited: str | None) -> Iterator[Write]:
    """The media files of a clip, each as a function that writes it if it is not there."""
    for uri, scene in ((source, clip.scene), (edited, clip.edited)):
        last = uri == (edited or source)  # faults sit in the edit, or in the lone clip
        missing = clip.fault == ("missing_target" if last else "missing_source")
        if uri and scene and not missing:
            yield partial(_write_media, uri, clip, clip.scene if clip.fault == "identical" else scene, last)


def _write_media(uri: str, clip: Clip, scene: world.Scene, last: bool) -> None:
    if not storage.exists(uri):
        storage.write_bytes(uri, _bytes(clip, scene, last))


def _bytes(clip: Clip, scene: world.Scene, last: bool) -> bytes:
    fault = clip.fault if last or clip.fault == "too_short" else None
    count = {"unequal_frames": clip.frames - 8, "too_short": 5}.get(fault or "", clip.frames)
    frames = world.render(scene, count, clip.height, clip.width, clip.fps)
    if fault in PICTURE_FAULTS:
        frames = PICTURE_FAULTS[fault](frames)
    data = video.encode_image(frames[0], "jpg") if clip.frames == 1 else video.encode(frames, clip.fps)
    if fault == "truncated":
        return data[: len(data) * 6 // 10]
    if fault == "corrupt":
        head = data.index(b"mdat") + 4
        noise = np.random.default_rng(len(data)).integers(0, 256, len(data) - head, dtype=np.uint8)
        return data[:head] + noise.tobytes()
    return data


def _shot_cut(frames: np.ndarray) -> np.ndarray:
    other = world.random_scene(int(frames.sum()) % 2**31)
    cut = len(frames) // 2
    drawn = world.render(other, len(frames) - cut, frames.shape[1], frames.shape[2])
    return np.concatenate([frames[:cut], 255 - drawn])


def _black_border(frames: np.ndarray) -> np.ndarray:
    bar = frames.shape[1] // 6
    framed = frames.copy()
    framed[:, :bar] = framed[:, -bar:] = 0
    return framed


def _blurred(frames: np.ndarray) -> np.ndarray:
    small = frames[:, ::12, ::12]
    return video.cover_crop(small, frames.shape[1], frames.shape[2])


PICTURE_FAULTS: dict[str | None, Callable[[np.ndarray], np.ndarray]] = {
    "static": lambda frames: np.repeat(frames[:1], len(frames), axis=0),
    "shot_cut": _shot_cut,
    "black_border": _black_border,
    "blurred": _blurred,
}


def _text(uri: str, text: str) -> Write:
    return partial(storage.write_bytes, uri, text)


def _csv(rows: list[list[str]], delimiter: str) -> str:
    sink = io.StringIO()
    csv.writer(sink, delimiter=delimiter, lineterminator="\n").writerows(rows)
    return sink.getvalue()
