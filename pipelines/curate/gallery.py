"""Pairs as looping pictures in one HTML file: source and target side by side, in step."""

from __future__ import annotations

import base64
import html
import io
from typing import Any

import numpy as np

from pipelines.samples.index import media_of
from sama import video

HEIGHT = 108  # pixels of a looping clip: a page of fifty pairs stays below 5 MB
FRAMES = 12  # moments shown
SECONDS = 1.8  # of one loop
BLURRED = 12  # a picture that is to be unrecognisable is shown at so many pixels of height, scaled up again
STYLE = (
    "body{font:14px/1.5 system-ui,sans-serif;margin:2em;max-width:1200px}"
    ".g{display:grid;grid-template-columns:repeat(auto-fill,minmax(330px,1fr));gap:14px}"
    "article{border:1px solid #ddd;border-radius:10px;padding:10px}img{width:100%;border-radius:6px}"
    ".v{padding:2em;text-align:center;color:#777;border:1px dashed #bbb;border-radius:6px}"
    "code,small{color:#666;overflow-wrap:anywhere}.r{background:#fae6e7;border-radius:9px;padding:1px 8px;margin:2px}"
)
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def looping(row: dict[str, Any], blur: bool = False) -> bytes:
    """Both members of an index row side by side as an animated WebP (a still one for pictures).

    blur: shown unrecognisably. video.MediaError when one does not decode, OSError or EOFError when it cannot be read.
    """
    sides = [_frames(row, s) for s in ("source", "target") if row[f"{s}_uri"] is not None]
    count = min(len(s) for s in sides)
    sides = [s[np.linspace(0, len(s) - 1, count).astype(int)] for s in sides]
    gap = np.full((count, HEIGHT, 3, 3), 128, np.uint8)
    joined = np.concatenate([x for s in sides for x in (s, gap)][:-1], axis=2)
    return _webp(joined, blur)


def _frames(row: dict[str, Any], side: str) -> np.ndarray:
    count, height, width = (row[f"{side}_{n}"] or 1 for n in ("frames", "height", "width"))
    head, tail = (row["skip_head"] or 0, row["skip_tail"] or 0) if count > 1 else (0, 0)
    at = np.unique(np.linspace(head, max(head, count - 1 - tail), FRAMES).astype(int))
    across = int(np.clip(round(HEIGHT * width / height), 40, 260))
    return video.decode(media_of(row, side), at.tolist(), (HEIGHT, across))


def _webp(frames: np.ndarray, blur: bool) -> bytes:
    from PIL import Image

    pictures = [Image.fromarray(f) for f in frames]
    if blur:
        small = (max(1, pictures[0].width * BLURRED // HEIGHT), BLURRED)
        pictures = [p.resize(small, Image.Resampling.BOX).resize(p.size, Image.Resampling.BICUBIC) for p in pictures]
    sink = io.BytesIO()
    more = {"save_all": True, "append_images": pictures[1:], "loop": 0} if len(pictures) > 1 else {}
    pictures[0].save(sink, "webp", quality=45, method=2, duration=round(1000 * SECONDS / len(pictures)), **more)
    return sink.getvalue()


def card(row: dict[str, Any], reasons: list[str], media: bool = True, blur: bool = False) -> str:
    """One pair with its words. What cannot be shown says why."""
    name = html.escape(row["key"])
    if not media:
        shown = '<div class="v">pictures were not asked for</div>'
    else:
        try:
            data = base64.b64encode(looping(row, blur)).decode()
            shown = f'<img loading="lazy" alt="source and target of {name}" src="data:image/webp;base64,{data}">'
        except (video.MediaError, OSError, EOFError, ValueError) as error:
            shown = f'<div class="v">{html.escape(str(error))}</div>'
    why = "".join(f'<span class="r">{html.escape(r.replace("_", " "))}</span>' for r in reasons)
    text = html.escape((row.get("instruction") or row.get("caption") or "")[:200])
    facts = html.escape(f"{row['dataset']} · {row['category']}")
    return f"<article>{shown}<div>{why} {text}</div><small>{facts}<br><code>{name}</code></small></article>"


def document(title: str, text: str, sections: list[tuple[str, list[str]]]) -> str:
    """A page of galleries: a title, plain text, and sections of cards. It loads nothing and runs nothing."""
    head = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    head += f"<title>{html.escape(title)}</title><style>{STYLE}</style>"
    body = f"<h1>{html.escape(title)}</h1><pre>{html.escape(text)}</pre>"
    for name, cards in sections:
        body += f'<h2>{html.escape(name)}</h2><div class="g">{"".join(cards)}</div>'
    return f"<!doctype html><html lang=en><head>{head}</head><body>{body}</body></html>"
