"""One sample with everything known of it."""

from __future__ import annotations

import base64
import difflib
import html
import json
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.curate.select import read_selection
from pipelines.curate.verdicts import JUDGEMENTS, join, signals_of
from pipelines.samples import storage
from pipelines.samples.index import facts_of, media_of, read_index, rows_of
from sama.errors import InputError

MIME = {"mp4": "video/mp4", "mov": "video/mp4", "mkv": "video/x-matroska", "jpg": "image/jpeg"}


def everything(root: str, key: str) -> dict[str, Any]:
    """{"sample": the JSON in the shard, "index": its row, "signals": newest row or None, "judgements": rows,
    "selections": {name: {"decision", "reasons"}}}. InputError names the nearest key where there is none."""
    row = rows_of(root, [key]).get(key)
    if row is None:
        known = read_index(root, None, ["key"])["key"].to_pylist()
        close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        raise InputError(f"{root} has no sample {key}; {'the nearest is ' + close[0] if close else 'see its index'}")
    digest = pa.chunked_array([pa.array([row["sample_digest"]], pa.binary(32))])
    signals = join(digest, signals_of(root)).to_pylist()[0]
    judged = storage.read_parts(storage.join(root, "judgements"), JUDGEMENTS)
    selections = {}
    for name in storage.list_folders(storage.join(root, "selections")):
        try:
            table = read_selection(root, name)
        except InputError:  # not finished
            continue
        found = table.filter(pc.equal(table["key"], key)).to_pylist()
        selections[name] = {n: found[0][n] for n in ("decision", "reasons")} if found else None
    return {
        "sample": facts_of(row),
        "index": row,
        "signals": signals if signals["sample_digest"] is not None else None,
        "judgements": judged.filter(pc.equal(judged["sample_digest"], digest[0])).to_pylist(),
        "selections": selections,
    }


def describe(root: str, key: str) -> str:
    """The same as plain text."""
    known = everything(root, key)
    index, sample = known["index"], known["sample"]
    lines = [key, f"  {index['dataset']}, {index['kind']}, {index['category']}, split {index['split']}"]
    for name in ("instruction", "caption", "license", "license_evidence", "editor", "source_url", "subset"):
        if sample.get(name):
            lines.append(f"  {name}: {sample[name]}")
    for side in ("source", "target"):
        media = sample[side]
        if media:
            rate = f" at {media['fps']:g} fps" if media["fps"] else ""
            lines.append(
                f"  {side}: {media['width']}x{media['height']}, {media['frames']} frames{rate}, {media['codec']}"
            )
            place = f"{index[f'{side}_uri']} at {index[f'{side}_offset']} + {index[f'{side}_size']}"
            lines += [f"    sha256 {media['sha256']}", f"    {place}"]
    lines += [f"  frame policy: {_flat(sample['frame_policy'])}", f"  origin: {_flat(sample['origin'])}"]
    lines.append(f"  footage {index['source_group']}, digest {index['sample_digest'].hex()}")
    signals = known["signals"]
    if signals is None:
        lines.append("signals: none yet, run `sama curate`")
    else:
        lines.append(f"signals (version {signals['signals_version']}, {signals['created_at']:%Y-%m-%d %H:%M} UTC):")
        hidden = ("sample_digest", "signals_version", "created_at", "prints_source", "prints_target")
        lines += [f"  {n}: {_plain(v)}" for n, v in signals.items() if v is not None and n not in hidden]
    for answer in known["judgements"]:
        lines.append(f"judgement: {_flat({n: v for n, v in answer.items() if n != 'sample_digest'})}")
    for name, found in known["selections"].items():
        verdict = "not part of it" if found is None else found["decision"]
        why = f": {', '.join(found['reasons'])}" if found and found["reasons"] else ""
        lines.append(f"selection {name}: {verdict}{why}")
    return "\n".join(lines)


def page(root: str, key: str) -> str:
    """One self-contained HTML page: the clips side by side over the text. Media are embedded as they are."""
    from sama import video

    index = everything(root, key)["index"]
    cells = []
    for side in ("source", "target"):
        if index[f"{side}_uri"] is None:
            continue
        data = media_of(index, side)
        kind = video.media_type(data)
        still = kind in video.IMAGE_TYPES
        mime = MIME.get(kind, f"{'image' if still else 'video'}/{kind}")
        url = f"data:{mime};base64,{base64.b64encode(data).decode()}"
        tag = f'<img src="{url}">' if still else f'<video src="{url}" autoplay loop muted controls></video>'
        cells.append(f"<figure>{tag}<figcaption>{side}</figcaption></figure>")
    text = html.escape(describe(root, key))
    style = "body{font:14px sans-serif;margin:2em}div{display:flex;gap:1em}figure{margin:0}img,video{max-width:46vw}"
    head = f'<meta charset="utf-8"><title>{html.escape(key)}</title><style>{style}</style>'
    return f"<!doctype html><html><head>{head}</head><body><div>{''.join(cells)}</div><pre>{text}</pre></body></html>"


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False, default=str)


def _flat(tree: dict[str, Any]) -> str:
    return ", ".join(f"{n} {_plain(v)}" for n, v in tree.items() if v is not None)
