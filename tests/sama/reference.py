"""A plain float64 reading of method.md section 2: SAMA's forward pass on weights in the official names.

Written against the description, not against the implementation: loops over heads, complex rotations, no
library attention. Slow, and meant to be.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

Weights = dict[str, torch.Tensor]


def _linear(w: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def _norm(x: torch.Tensor, weight: torch.Tensor | None = None, bias: torch.Tensor | None = None) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    out = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-6)
    return out if weight is None or bias is None else out * weight + bias


def _rms(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight


def _turns(position: tuple[float, float, float], head_dim: int) -> torch.Tensor:
    """One complex factor per pair of channels: time first, then height and width, a third each, time the rest."""
    side = 2 * (head_dim // 6)
    out = []
    for at, dim in zip(position, (head_dim - 2 * side, side, side), strict=True):
        for pair in range(dim // 2):
            angle = at / 10000 ** (2 * pair / dim)
            out.append(complex(math.cos(angle), math.sin(angle)))
    return torch.tensor(out, dtype=torch.complex128)


def _grid(shape: tuple[int, int, int], first: int = 0) -> list[tuple[float, float, float]]:
    return [(first + t, h, w) for t in range(shape[0]) for h in range(shape[1]) for w in range(shape[2])]


def _attention(w: Weights, name: str, x: torch.Tensor, y: torch.Tensor, heads: int, turns: torch.Tensor | None):
    q = _rms(_linear(w, f"{name}.q", x), w[f"{name}.norm_q.weight"])
    k = _rms(_linear(w, f"{name}.k", y), w[f"{name}.norm_k.weight"])
    v = _linear(w, f"{name}.v", y)
    out, width = [], q.shape[-1] // heads
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        a, b = q[..., part], k[..., part]
        if turns is not None:
            a, b = (
                torch.view_as_real(torch.view_as_complex(z.reshape(*z.shape[:-1], -1, 2).contiguous()) * turns).flatten(
                    -2
                )
                for z in (a, b)
            )
        out.append(torch.softmax(a @ b.transpose(-1, -2) / math.sqrt(width), dim=-1) @ v[..., part])
    return _linear(w, f"{name}.o", torch.cat(out, dim=-1))


def forward(
    weights: Weights,
    heads: int,
    latents: torch.Tensor,
    timestep: torch.Tensor,
    text: torch.Tensor,
    source: torch.Tensor | None = None,
    semantic: torch.Tensor | None = None,
    role_encoding: str = "type_embedding",
    semantic_position: str = "null",
    anchor_times: list[int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Velocities in float64. anchor_times: latent frame of each anchor, for `temporal`; 65 tokens each."""
    w = {k: v.double() for k, v in weights.items()}
    latents, text = latents.double(), text.double()
    dim = w["patch_embedding.weight"].shape[0]
    head_dim = dim // heads
    grid = (latents.shape[2], latents.shape[3] // 2, latents.shape[4] // 2)

    def patches(video: torch.Tensor) -> torch.Tensor:
        b, c, t, h, wide = video.shape
        cut = video.reshape(b, c, t, h // 2, 2, wide // 2, 2).permute(0, 2, 3, 5, 1, 4, 6)
        return (
            cut.reshape(b, t * (h // 2) * (wide // 2), c * 4) @ w["patch_embedding.weight"].reshape(dim, -1).T
            + w["patch_embedding.bias"]
        )

    parts, turns, roles = [], [], []
    if source is not None:
        parts.append(patches(source.double()))
        first = grid[0] if role_encoding == "shifted_rope" else 0
        turns += [_turns(p, head_dim) for p in _grid((source.shape[2], *grid[1:]), first)]
        roles += [0] * parts[-1].shape[1]
    if semantic is not None:
        x = _norm(semantic.double(), w["siglip_feat_mlp.norm.weight"], w["siglip_feat_mlp.norm.bias"])
        parts.append(_linear(w, "siglip_feat_mlp.fc2", F.gelu(_linear(w, "siglip_feat_mlp.fc1", x))))
        for i in range(semantic.shape[1]):
            at = anchor_times[i // 65] if semantic_position == "temporal" and anchor_times else 0
            turns.append(_turns((at, 0, 0), head_dim) * (0 if semantic_position == "null" else 1))
        roles += [1] * semantic.shape[1]
    parts.append(patches(latents))
    turns += [_turns(p, head_dim) for p in _grid(grid)]
    roles += [2] * parts[-1].shape[1]
    x = torch.cat(parts, dim=1)
    if role_encoding == "type_embedding":
        x = x + w["segment_embedding.weight"][torch.tensor(roles)]
    rotation = torch.stack(turns)

    half = w["time_embedding.0.weight"].shape[1] // 2
    angles = timestep.double()[:, None] / 10000 ** (torch.arange(half, dtype=torch.float64) / half)
    sinusoid = torch.cat([angles.cos(), angles.sin()], dim=1)
    time = _linear(w, "time_embedding.2", F.silu(_linear(w, "time_embedding.0", sinusoid)))
    modulation = _linear(w, "time_projection.1", F.silu(time)).reshape(-1, 6, dim)
    context = _linear(w, "text_embedding.2", F.gelu(_linear(w, "text_embedding.0", text), approximate="tanh"))

    for i in range(1 + max(int(k.split(".")[1]) for k in w if k.startswith("blocks."))):
        b = f"blocks.{i}"
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (w[f"{b}.modulation"] + modulation).split(1, dim=1)
        inner = _norm(x) * (1 + scale) + shift
        x = x + gate * _attention(w, f"{b}.self_attn", inner, inner, heads, rotation)
        inner = _norm(x, w[f"{b}.norm3.weight"], w[f"{b}.norm3.bias"])
        x = x + _attention(w, f"{b}.cross_attn", inner, context, heads, None)
        inner = _norm(x) * (1 + ffn_scale) + ffn_shift
        x = x + ffn_gate * _linear(w, f"{b}.ffn.2", F.gelu(_linear(w, f"{b}.ffn.0", inner), approximate="tanh"))

    semantic_velocity = None
    if semantic is not None:
        own = x[:, [i for i, role in enumerate(roles) if role == 1]]
        own = _norm(own, w["semantic_head.norm.weight"], w["semantic_head.norm.bias"])
        semantic_velocity = _linear(w, "semantic_head.proj", own)
    target = x[:, [i for i, role in enumerate(roles) if role == 2]]
    shift, scale = (w["head.modulation"] + time[:, None]).split(1, dim=1)
    out = _linear(w, "head.head", _norm(target) * (1 + scale) + shift)
    channels = out.shape[-1] // 4
    out = out.reshape(-1, *grid, 2, 2, channels).permute(0, 6, 1, 2, 4, 3, 5)
    return out.reshape(latents.shape[0], channels, grid[0], grid[1] * 2, grid[2] * 2), semantic_velocity
