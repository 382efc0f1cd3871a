"""What the VAE of preset `tiny` keeps of clips it never saw, and how fast it encodes.

    python benchmarks/tiny_vae.py

Prints the PSNR on held-out procedural clips, the size of the weights, and seconds per clip as ratios:
in the layout that the encoders use against torch's default, and together against one at a time.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan

import sama
from pipelines.demo.train_tiny_vae import held_out_clips, psnr

FOLDER = Path(sama.__file__).parent / "assets" / "tiny" / "vae"


def load(channels_last: bool) -> AutoencoderKLWan:
    vae = AutoencoderKLWan.from_pretrained(FOLDER, torch_dtype=torch.float32).eval()
    for kernel in vae.parameters():
        if channels_last and kernel.ndim == 5:
            kernel.data = kernel.data.contiguous(memory_format=torch.channels_last_3d)
    return vae


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
    fast, plain = load(True), load(False)
    size = sum(f.stat().st_size for f in FOLDER.glob("*.safetensors"))
    clips = held_out_clips(4)
    reference = seconds(fast, clips, together=True)
    print("| what | value |\n| --- | ---: |")
    print(f"| PSNR on 16 held-out clips of 9x64x64 | {psnr(fast, held_out_clips()):.1f} dB |")
    print(f"| weights | {size / 1e6:.1f} MB |")
    print(f"| encode, default layout over ours | {seconds(plain, clips, together=True) / reference:.2f} x |")
    print(f"| encode, one at a time over four together | {seconds(fast, clips, together=False) / reference:.2f} x |")


if __name__ == "__main__":
    main()
