"""What the VAE of preset `tiny` keeps of clips it never saw, and how fast it encodes.

    python benchmarks/tiny_vae.py

Prints the PSNR on held-out procedural clips, the size of the weights, and what encoding clips one at a
time costs against encoding them together.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan

import sama
from pipelines.demo.train_tiny_vae import held_out_clips, psnr

FOLDER = Path(sama.__file__).parent / "assets" / "tiny" / "vae"


@torch.no_grad()
def seconds(vae: AutoencoderKLWan, clips: torch.Tensor, together: bool, repeats: int = 5) -> float:
    """Median seconds per clip."""
    taken = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        for part in [clips] if together else clips.split(1):
            vae.encode(part)
        taken.append((time.perf_counter() - began) / len(clips))
    return sorted(taken[1:])[repeats // 2]


def main() -> None:
    torch.set_num_threads(1)
    vae = AutoencoderKLWan.from_pretrained(FOLDER, torch_dtype=torch.float32).eval()
    size = sum(f.stat().st_size for f in FOLDER.glob("*.safetensors"))
    clips = held_out_clips(4)
    ratio = seconds(vae, clips, together=False) / seconds(vae, clips, together=True)
    print("| what | value |\n| --- | ---: |")
    print(f"| PSNR on 16 held-out clips of 9x64x64 | {psnr(vae, held_out_clips()):.1f} dB |")
    print(f"| weights | {size / 1e6:.1f} MB |")
    print(f"| encode, one at a time over four together | {ratio:.2f} x |")


if __name__ == "__main__":
    main()
