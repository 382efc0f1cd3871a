"""What the words of an instruction say without understanding them: their language, and whether they ask to erase."""

from __future__ import annotations

import re
from collections import Counter

_SCRIPTS = (
    ("ja", "\u3040-\u30ff"), ("ko", "\uac00-\ud7af\u1100-\u11ff"), ("zh", "\u4e00-\u9fff\u3400-\u4dbf"),
    ("ru", "\u0400-\u04ff"), ("ar", "\u0600-\u06ff"), ("he", "\u0590-\u05ff"), ("hi", "\u0900-\u097f"),
    ("th", "\u0e00-\u0e7f"), ("el", "\u0370-\u03ff"), ("latin", "A-Za-z\u00c0-\u024f"),
)  # fmt: skip
_PATTERNS = [(name, re.compile(f"[{letters}]")) for name, letters in _SCRIPTS]
_COMMON = {
    "en": "the a an to of in with and on it is make add remove replace change turn into",
    "es": "el la los las de un una con y en por que haz cambia quita",
    "fr": "le la les des un une avec et dans du au en mets change",
    "de": "der die das ein eine mit und im den dem mache ersetze entferne",
    "pt": "o os as um uma com e em do da no na mude remova",
    "it": "il lo gli un una con e nel della del di cambia rimuovi",
}
_WORDS = {name: frozenset(words.split()) for name, words in _COMMON.items()}
# verbs only: "in white text without a border" does not ask to erase the text
ERASES = (
    r"(?i)\b(remove|removing|erase|erasing|delete|deleting|eliminate|get rid|clear|hide|strip|wipe)\b"
    r"|去除|移除|删除|去掉|擦除|消除"
)


def language(text: str | None) -> str | None:
    """ISO 639-1 code guessed from the script and, in Latin letters, from common words; "und" where undecided.

    None for no text. Kana decides for Japanese before Chinese characters are counted. A guess for short text.
    """
    if text is None or not text.strip():
        return None
    letters = {name: len(pattern.findall(text)) for name, pattern in _PATTERNS}
    if letters["ja"]:
        return "ja"
    script, most = max(letters.items(), key=lambda pair: pair[1])
    if not most:
        return "und"
    if script != "latin":
        return script
    words = Counter(re.findall(r"[^\W\d_]+", text.lower()))
    hits = {name: sum(words[w] for w in known) for name, known in _WORDS.items()}
    best = max(hits.values())
    found = [name for name, n in hits.items() if n == best]
    return found[0] if best and (len(found) == 1 or found[0] == "en") else "und"
