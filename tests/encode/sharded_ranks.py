"""As a program, one process per rank: sharded_ranks.py RANK RANKS PORT. Says whether sharded text equals whole text."""

from __future__ import annotations

import json
import os
import sys

import torch

from pipelines.encode.text import LiveText
from pipelines.train import parallel
from sama.encoders import Encoders

PROMPTS = (["Make the sky red.", "[Video edit]"], ["Remove the dog", "a much longer prompt about a boat at sea"])

if __name__ == "__main__":
    rank, ranks, port = sys.argv[1:]
    os.environ.update(RANK=rank, WORLD_SIZE=ranks, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    torch.set_num_threads(1)
    world = parallel.join(torch.device("cpu"))
    mine = PROMPTS[world.rank]  # every rank has prompts of its own
    whole = Encoders.from_preset("tiny").encode_text(mine)
    encoders = Encoders.from_preset("tiny")
    live = LiveText(encoders, mesh=world.mesh)
    found = [live(mine) for _ in range(2)][-1]
    parameters = list(encoders.text_encoder.parameters())
    held = sum(parallel.local(p).numel() for p in parameters) / sum(p.numel() for p in parameters)
    print(json.dumps({"equal": bool(torch.equal(whole, found)), "held": held}))
