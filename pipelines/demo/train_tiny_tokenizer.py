"""Train the tokenizer of preset `tiny`: `python -m pipelines.demo.train_tiny_tokenizer [OUT/tokenizer.json]`.

Byte-level BPE on the captions, instructions and task tokens of the procedural world: its words become
single tokens, and any other text falls back to bytes, so there is no unknown token.
"""

from __future__ import annotations

import argparse
import importlib.resources
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from pipelines.demo.world import EDITS, describe, edit_scene, random_scene

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"  # ids 0, 1, 2, as in UMT5
TASK_TEXTS = (
    "[Video edit] ",
    "[Complete the missing regions in the video.]",
    "[Restore the video to normal playback speed.]",
    "[Restore the correct spatio-temporal order of the video segments.]",
)


def texts(scenes: int = 3000) -> Iterator[str]:
    """Every kind of text that the demo puts before the model, in a fixed order."""
    for seed in range(scenes):
        scene = random_scene(seed)
        yield describe(scene)
        for i, edit in enumerate(EDITS):
            _, instruction = edit_scene(scene, edit, seed * len(EDITS) + i)
            yield TASK_TEXTS[0] + instruction
        yield TASK_TEXTS[1 + seed % 3] + " " + describe(scene)


def train(vocabulary: int = 1024, scenes: int = 3000) -> Tokenizer:
    """The same tokenizer every time: the trainer is deterministic and the texts are seeded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, END, UNKNOWN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(scenes), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    shipped = importlib.resources.files("sama") / "assets" / "tiny" / "tokenizer" / "tokenizer.json"
    parser.add_argument("out", nargs="?", default=str(shipped))
    out = Path(parser.parse_args().out)
    out.parent.mkdir(parents=True, exist_ok=True)
    train().save(str(out))
    print(f"{out}: {Tokenizer.from_file(str(out)).get_vocab_size()} tokens")


if __name__ == "__main__":
    main()
