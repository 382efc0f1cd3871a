"""The frame of a page: head, navigation, sections, footer. Everything is inside; nothing is loaded."""

from __future__ import annotations

import importlib.resources
import time
from collections.abc import Sequence

from pipelines.report.markup import Markup, tag

Section = tuple[str, str, str, Markup]  # anchor, title, lead, content


def page(title: str, policy: str, sections: Sequence[Section], where: Sequence[object] = (), top: str = "") -> str:
    """A whole HTML document.

    policy: its Content-Security-Policy; where: what stands under the title; top: what stands before the sections.
    """
    style = (importlib.resources.files("pipelines.report") / "style.css").read_text()
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Markup(style)),
    )
    header = tag("header", tag("h1", title), tag("p", where, class_="lead") if where else "", id="top")
    nav = tag("nav", tag("div", [tag("a", anchor, href=f"#{anchor}") for anchor, *_ in sections]))
    body = [
        tag("section", tag("h2", name), tag("p", lead, class_="lead") if lead else "", content, id=anchor)
        for anchor, name, lead, content in sections
    ]
    made = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    footer = tag("footer", f"Made {made}. This page holds everything it shows and loads nothing.")
    return "<!doctype html>\n" + tag("html", head, tag("body", header, nav, tag("main", top, body), footer), lang="en")
