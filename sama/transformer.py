"""SAMA's transformer on diffusers' Wan transformer: `[source ; semantic ; target]` tokens in one sequence.

Method: sections 2 and 3. Submodules keep diffusers' names; the three extra ones have the names of the
released checkpoint (`segment_embedding`, `siglip_feat_mlp`, `semantic_head`). Nothing here knows about
parallelism: shard `model.blocks`, checkpoint or compile them from outside.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import ModelMixin  # noqa: F401 - diffusers' pipelines look for it beside the class to load
from diffusers.configuration_utils import register_to_config
from diffusers.models.normalization import FP32LayerNorm
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed, WanTransformer3DModel
from torch import nn

from sama.errors import InputError
from sama.semantic import anchor_latent_frames

SOURCE, SEMANTIC, TARGET = 0, 1, 2  # rows of the type embedding
ROLE_ENCODINGS = ("type_embedding", "shifted_rope", "none")
SEMANTIC_POSITIONS = ("null", "identity", "temporal")
Rotary = tuple[torch.Tensor, torch.Tensor]


class SemanticProjector(nn.Module):
    """Features of the semantic encoder (B, N, semantic_dim) -> tokens (B, N, dim)."""

    def __init__(self, semantic_dim: int, hidden_dim: int, dim: int) -> None:
        super().__init__()
        self.norm = FP32LayerNorm(semantic_dim, eps=1e-6)
        self.fc1 = nn.Linear(semantic_dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(self.norm(features.to(self.fc1.weight.dtype)))))


class SemanticHead(nn.Module):
    """Tokens (B, N, dim) after the last block -> velocity in feature space (B, N, semantic_dim)."""

    def __init__(self, dim: int, semantic_dim: int) -> None:
        super().__init__()
        self.norm = FP32LayerNorm(dim, eps=1e-6)
        self.proj = nn.Linear(dim, semantic_dim)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.proj(self.norm(hidden.to(self.proj.weight.dtype)))


def stays_float32(name: str) -> bool:
    """Whether a parameter or buffer is kept in float32 in a half-precision model, as diffusers does for Wan:
    rotary tables, the time embedding, modulation tables, norms."""
    return not set(WanTransformer3DModel._keep_in_fp32_modules).isdisjoint(name.split("."))


class SamaTransformer(WanTransformer3DModel):
    """The Wan transformer that also reads a source clip and semantic tokens, and predicts both velocities.

    role_encoding: how a token's role is told. `type_embedding` (default, the released weights): a learned
    vector per role, zeros at the start. `shifted_rope`: source tokens sit behind the target in time.
    `none`: source and target differ in nothing but their content.
    semantic_position: rotary factors of the semantic tokens. `null` (default, the released weights): cos and
    sin are 0, so their queries and keys vanish. `identity`: no rotation. `temporal`: the anchor frame's own
    time, no rotation in space.
    semantic_tokens_per_anchor: how many tokens one anchor frame has (65); only `temporal` needs it.
    """

    _cp_plan = None  # diffusers' context parallelism expects one video per sequence
    # of the image-to-video backbones: in no config.json, where diffusers would warn of them on every load
    ignore_for_config = ["image_dim", "added_kv_proj_dim", "pos_embed_seq_len"]  # noqa: RUF012 - diffusers reads a list

    @register_to_config
    def __init__(
        self,
        patch_size: tuple[int, ...] = (1, 2, 2),
        num_attention_heads: int = 40,
        attention_head_dim: int = 128,
        in_channels: int = 16,
        out_channels: int = 16,
        text_dim: int = 4096,
        freq_dim: int = 256,
        ffn_dim: int = 13824,
        num_layers: int = 40,
        cross_attn_norm: bool = True,
        qk_norm: str | None = "rms_norm_across_heads",
        eps: float = 1e-6,
        rope_max_seq_len: int = 1024,
        semantic_dim: int = 1152,
        semantic_hidden_dim: int = 1024,
        semantic_tokens_per_anchor: int = 65,
        role_encoding: str = "type_embedding",
        semantic_position: str = "null",
    ) -> None:
        super().__init__(
            patch_size=patch_size,
            num_attention_heads=num_attention_heads,
            attention_head_dim=attention_head_dim,
            in_channels=in_channels,
            out_channels=out_channels,
            text_dim=text_dim,
            freq_dim=freq_dim,
            ffn_dim=ffn_dim,
            num_layers=num_layers,
            cross_attn_norm=cross_attn_norm,
            qk_norm=qk_norm,
            eps=eps,
            rope_max_seq_len=rope_max_seq_len,
        )
        if role_encoding not in ROLE_ENCODINGS:
            raise InputError(f"{role_encoding} is not a role encoding; there are {', '.join(ROLE_ENCODINGS)}")
        if semantic_position not in SEMANTIC_POSITIONS:
            raise InputError(
                f"{semantic_position} is not a semantic position; there are {', '.join(SEMANTIC_POSITIONS)}"
            )
        dim = num_attention_heads * attention_head_dim
        if role_encoding == "type_embedding":
            self.segment_embedding = nn.Embedding(3, dim)
        self.siglip_feat_mlp = SemanticProjector(semantic_dim, semantic_hidden_dim, dim)
        self.semantic_head = SemanticHead(dim, semantic_dim)
        self.compute_dtype: torch.dtype | None = None
        self.reset_extras()

    @torch.no_grad()
    def reset_extras(self, generator: torch.Generator | None = None) -> None:
        """Start values of what the backbone lacks: type embedding zeros, linear weights Xavier-uniform,
        their biases normal with deviation 1e-3 (method: section 2)."""
        if hasattr(self, "segment_embedding"):
            self.segment_embedding.weight.zero_()
        for norm in (self.siglip_feat_mlp.norm, self.semantic_head.norm):
            norm.weight.fill_(1.0)
            norm.bias.zero_()
        for linear in (self.siglip_feat_mlp.fc1, self.siglip_feat_mlp.fc2, self.semantic_head.proj):
            nn.init.xavier_uniform_(linear.weight, generator=generator)
            nn.init.normal_(linear.bias, std=1e-3, generator=generator)

    def reset_buffers(self, device: torch.device | str | None = None) -> None:
        """Compute the rotary tables anew; needed after `to_empty`, since they are in no checkpoint."""
        with torch.device(device or self.patch_embedding.weight.device):
            self.rope = WanRotaryPosEmbed(
                self.config.attention_head_dim, self.config.patch_size, self.config.rope_max_seq_len
            )

    def _apply(self, fn: Callable, recurse: bool = True) -> SamaTransformer:
        """Every cast passes here: what stays float32 is put back unrounded."""
        tensors = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        kept = {n: t.data for n, t in tensors.items() if stays_float32(n) and t.dtype == torch.float32}
        super()._apply(fn, recurse)
        for name, tensor in (*self.named_parameters(), *self.named_buffers()):
            if name in kept and tensor.dtype in (torch.bfloat16, torch.float16):
                tensor.data = kept[name].to(tensor.device)
        return self

    def forward(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        text_embeds: torch.Tensor,
        source_latents: torch.Tensor | None = None,
        semantic_tokens: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Predict the velocities of the noised target and of the noised semantic features.

        latents: (B, C, T, H, W) noised target, normalised per channel; H and W even
        timestep: (B,) in 0..1000, float32; one for the whole sequence
        text_embeds: (B, L, text_dim), zeros beyond the prompt
        source_latents: (B, C, T', H, W) clean, or None
        semantic_tokens: (B, N, semantic_dim) noised features, before the projector, or None
        returns velocity (B, C, T, H, W) and semantic velocity (B, N, semantic_dim) or None

        Blocks compute in `compute_dtype`, by default the dtype of their weights. A wrapper that casts the
        weights on the way (FSDP2's MixedPrecisionPolicy) must set it, and pass cast_forward_inputs=False:
        timesteps, rotary factors and modulation enter the blocks in float32.
        """
        batch = latents.shape[0]
        dtype = self.compute_dtype or self.blocks[0].attn1.to_q.weight.dtype
        grid = tuple(s // p for s, p in zip(latents.shape[2:], self.config.patch_size, strict=True))
        parts = [] if source_latents is None else [self._video_tokens(source_latents, SOURCE)]
        if semantic_tokens is not None:
            parts.append(self._add_role(self.siglip_feat_mlp(semantic_tokens), SEMANTIC))
        parts.append(self._video_tokens(latents, TARGET))
        lengths = [p.shape[1] for p in parts]
        hidden = torch.cat([p.to(dtype) for p in parts], dim=1).contiguous()
        rotary = self._rotary(grid, source_latents, semantic_tokens)

        text = text_embeds.to(self.condition_embedder.text_embedder.linear_1.weight.dtype)
        temb, modulation, text, _ = self.condition_embedder(timestep, text)
        text, modulation = text.to(dtype), modulation.unflatten(1, (6, -1))
        for block in self.blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hidden = self._gradient_checkpointing_func(block, hidden, text, modulation, rotary)
            else:
                hidden = block(hidden, text, modulation, rotary)

        *_, target = hidden.split(lengths, dim=1)
        semantic_velocity = None
        if semantic_tokens is not None:
            # as a copy too: a linear layer's output is a view of its matrix product
            semantic_velocity = self.semantic_head(hidden.split(lengths, dim=1)[-2]).clone()
        return self._unpatchify(self._project(target, temb), batch, grid), semantic_velocity

    def _video_tokens(self, latents: torch.Tensor, role: int) -> torch.Tensor:
        patches = self.patch_embedding(latents.to(self.patch_embedding.weight.dtype))
        return self._add_role(patches.flatten(2).transpose(1, 2), role)

    def _add_role(self, tokens: torch.Tensor, role: int) -> torch.Tensor:
        if self.config.role_encoding != "type_embedding":
            return tokens
        return tokens + self.segment_embedding(torch.tensor([role], device=tokens.device))

    def _project(self, target: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        shift, scale = (self.scale_shift_table + temb.unsqueeze(1)).chunk(2, dim=1)
        normed = (self.norm_out(target.float()) * (1 + scale) + shift).type_as(target)
        return self.proj_out(normed.to(self.proj_out.weight.dtype))

    def _unpatchify(self, patches: torch.Tensor, batch: int, grid: tuple[int, ...]) -> torch.Tensor:
        patch = self.config.patch_size
        pixels = patches.reshape(batch, *grid, *patch, -1).permute(0, 7, 1, 4, 2, 5, 3, 6)
        sizes = (g * p for g, p in zip(grid, patch, strict=True))
        return pixels.reshape(batch, pixels.shape[1], *sizes)  # one copy, not a view: FSDP2 hooks the output

    def _rotary(self, grid: tuple[int, ...], source: torch.Tensor | None, semantic: torch.Tensor | None) -> Rotary:
        """Rotary factors of the whole sequence, each (1, tokens, 1, head dim), float32."""
        parts: list[Rotary] = []
        if source is not None:
            source_grid = tuple(s // p for s, p in zip(source.shape[2:], self.config.patch_size, strict=True))
            parts.append(self._video_rotary(source_grid, grid[0] if self.config.role_encoding == "shifted_rope" else 0))
        if semantic is not None:
            parts.append(self._semantic_rotary(semantic.shape[1], grid[0]))
        parts.append(self._video_rotary(grid, 0))
        cos, sin = (torch.cat([p[i] for p in parts], dim=1) for i in (0, 1))
        return cos, sin

    def _video_rotary(self, grid: tuple[int, ...], first: int) -> Rotary:
        """Factors of a (time, height, width) grid whose time starts at position `first`."""
        time, height, width = grid
        if first + time > self.rope.max_seq_len:
            raise InputError(f"{first + time} latent frames exceed the {self.rope.max_seq_len} positions of the model")
        sizes, dims = (time, height, width), [self.rope.t_dim, self.rope.h_dim, self.rope.w_dim]

        def spread(table: torch.Tensor) -> torch.Tensor:
            t, h, w = table.split(dims, dim=1)
            t = t[first : first + time].view(time, 1, 1, -1).expand(*sizes, -1)
            h = h[:height].view(1, height, 1, -1).expand(*sizes, -1)
            w = w[:width].view(1, 1, width, -1).expand(*sizes, -1)
            return torch.cat([t, h, w], dim=-1).reshape(1, time * height * width, 1, -1)

        return spread(self.rope.freqs_cos), spread(self.rope.freqs_sin)

    def _semantic_rotary(self, tokens: int, latent_frames: int) -> Rotary:
        like, head_dim = self.rope.freqs_cos, self.config.attention_head_dim
        zeros = like.new_zeros(1, tokens, 1, head_dim)
        if self.config.semantic_position == "null":
            return zeros, zeros
        cos, sin = torch.ones_like(zeros), zeros.clone()
        if self.config.semantic_position == "temporal":
            per_anchor, t_dim = self.config.semantic_tokens_per_anchor, self.rope.t_dim
            anchors, rest = divmod(tokens, per_anchor)
            if rest:
                raise InputError(f"{tokens} semantic tokens are no multiple of the {per_anchor} of an anchor frame")
            at = torch.tensor(anchor_latent_frames(latent_frames, anchors), device=like.device)
            at = at.repeat_interleave(per_anchor)
            cos[0, :, 0, :t_dim] = self.rope.freqs_cos[at, :t_dim]
            sin[0, :, 0, :t_dim] = self.rope.freqs_sin[at, :t_dim]
        return cos, sin
