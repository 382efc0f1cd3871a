"""HTML and SVG that are escaped by construction: text becomes markup only by passing through `tag`."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

VOID = frozenset({"meta", "img", "br", "rect", "line", "path", "circle", "source", "input"})


class Markup(str):
    """Text that is already HTML. Everything else that reaches a page is escaped."""

    __slots__ = ()


Child = str | int | float | None | Iterable[Any]


def text(value: Any) -> Markup:
    """Any value as escaped HTML; Markup stays as it is, lists are joined, None and False vanish."""
    if isinstance(value, Markup):
        return value
    if value is None or value is False:
        return Markup("")
    if isinstance(value, str):
        return Markup(escape(_printable(value), quote=True))
    if isinstance(value, Iterable):
        return Markup("".join(text(v) for v in value))
    return Markup(escape(str(value), quote=True))


def tag(name: str, /, *children: Child, **attributes: Any) -> Markup:
    """`tag("a", "x & y", href="#z", class_="k")`: attribute names lose a trailing `_`, inner `_` become `-`.

    An attribute that is None or False is left out; True writes the bare name.
    """
    written = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        word = "viewBox" if key == "viewBox" else key.rstrip("_").replace("_", "-")
        written.append(f" {word}" if value is True else f' {word}="{escape(_printable(str(value)), quote=True)}"')
    head = name + "".join(written)
    if name in VOID and not children:
        return Markup(f"<{head}/>")
    return Markup(f"<{head}>{text(children)}</{name}>")


def _printable(value: str) -> str:
    """Control characters and lone surrogates have no place in HTML; a replacement mark shows that one was there."""
    return "".join(c if c in "\n\t" or (c >= " " and not "\ud800" <= c <= "\udfff") else "\ufffd" for c in value)


def clipped(value: str | None, limit: int = 240) -> str:
    """One line of at most `limit` characters."""
    line = " ".join((value or "").split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def number(value: float | int | None) -> str:
    """A count with thin spaces between thousands, or a measure with three or four significant digits."""
    if value is None or value != value:
        return "–"
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e15):
        return f"{int(value):,}".replace(",", "\u2009")
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}".replace(",", "\u2009")
    if size >= 100:
        return f"{value:.1f}"
    if size >= 0.001:
        return f"{value:.3g}" if size >= 1 else f"{value:.4f}".rstrip("0")
    return f"{value:.2e}"


def duration(seconds: float | None) -> str:
    """Seconds as a person says it."""
    if seconds is None:
        return "–"
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
