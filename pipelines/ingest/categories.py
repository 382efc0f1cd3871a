"""Our categories from other people's labels, and from the words of an instruction where there is no label."""

from __future__ import annotations

import re

from pipelines.samples.tables import CATEGORIES

# the first match counts: "replace the background" is a background edit, "add a caption" is a text edit
_WORDS = (
    ("text", r"text|subtitle|caption|letter|typograph|watermark"),
    ("background", r"background|backdrop|scenery"),
    ("lighting", r"light|relight|sunset|sunrise|golden hour|night|daytime|shadow"),
    ("style", r"style|styliz|stylis|painting|watercolou?r|cartoon|anime|sketch|pixel art|ghibli|sepia|black and white"),
    ("remove", r"remov|delet|erase|eliminat|get rid|take away"),
    ("attribute", r"colou?r|attribute|material|texture|appearance|recolou?r"),
    ("replace", r"replac|swap|substitut|change .+ (in)?to|turn .+ into|transform"),
    ("add", r"\badd|insert|put |place "),
    ("camera", r"camera|zoom|viewpoint|angle"),
    ("creative", r"creativ"),
)


def guess(label: str | None, instruction: str | None = None) -> str:
    """The category a label means, else the one an instruction speaks of, else `other`."""
    for words in (label, instruction):
        if not words:
            continue
        plain = words.lower().replace("_", " ")
        if plain in CATEGORIES:
            return plain
        for category, pattern in _WORDS:
            if re.search(pattern, plain):
                return category
    return "other"
