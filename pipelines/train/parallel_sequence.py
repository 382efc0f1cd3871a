"""Ulysses sequence parallelism, put onto the blocks from outside.

Between attentions each member of a group holds a contiguous share of the tokens [source ; semantic ; target], uneven
where the number of tokens does not divide; nothing is padded. For self-attention the members exchange: each gets all
tokens of its share of the heads. Behind the last block every member gets all tokens back and computes the same loss.

Gradients: the objective is the sum over the group of each member's loss, so the gradient of every parameter is the sum
of what the members find. The loop scales the loss so that FSDP's mean over all ranks is that sum over data ranks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from diffusers.models.attention_dispatch import dispatch_attention_fn

from pipelines.planner.layout import check_heads
from pipelines.train.parallel import World


def shares(tokens: int, members: int) -> list[int]:
    """Tokens of each member, as even as possible, larger shares first."""
    least, more = divmod(tokens, members)
    return [least + (m < more) for m in range(members)]


def split(model: Any, world: World) -> None:
    """Let the blocks of `model` work on this member's tokens. The model gets and gives whole sequences as before."""
    check_heads(model.config.num_attention_heads, world.sequence)
    for block in model.blocks:
        block.attn1.set_processor(UlyssesAttention(world))
    model.blocks[0].register_forward_pre_hook(lambda block, args: (_own(args[0], world), *args[1:]))
    model.blocks[-1].register_forward_hook(lambda block, args, output: gather_tokens(output, _total(args), world))


def keep_apart(model: Any, world: World) -> None:
    """Let self-attention stand outside of what is compiled, where `selective` checkpointing can see its results."""
    for block in model.blocks:
        block.attn1.set_processor(UlyssesAttention(world))


def _total(args: tuple) -> int:
    """Tokens of the whole sequence: a block's rotary factors are always whole."""
    return args[3][0].shape[1]


def _own(tokens: torch.Tensor, world: World, dim: int = 1) -> torch.Tensor:
    """This member's share of whole tokens."""
    return tokens.split(shares(tokens.shape[dim], world.sequence), dim=dim)[world.member]


class UlyssesAttention:
    """Self-attention of one block over the tokens of all members; a diffusers attention processor.

    Its core is never compiled: collectives and kept results are the business of plain code.
    """

    _attention_backend = None
    _parallel_config = None

    def __init__(self, world: World) -> None:
        self.world = world

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """hidden_states, and what comes back: (B, own tokens, dim); rotary_emb: two of (1, all tokens, 1, head dim)."""
        assert encoder_hidden_states is None
        assert attention_mask is None
        assert rotary_emb is not None
        query, key = attn.norm_q(attn.to_q(hidden_states)), attn.norm_k(attn.to_k(hidden_states))
        query, key, value = (x.unflatten(2, (attn.heads, -1)) for x in (query, key, attn.to_v(hidden_states)))
        total = rotary_emb[0].shape[1]
        cos, sin = (_own(r, self.world) for r in rotary_emb)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        found = self._exchanged(query, key, value, total)
        return attn.to_out[1](attn.to_out[0](found.flatten(2, 3)))

    @torch.compiler.disable
    def _exchanged(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, total: int) -> torch.Tensor:
        world = self.world
        if world.sequence == 1:
            return dispatch_attention_fn(query, key, value, backend=self._attention_backend).type_as(query)
        # one message for the three of them
        together = heads_for_tokens(torch.cat([query, key, value]), total, world)
        found = dispatch_attention_fn(*together.chunk(3), backend=self._attention_backend)
        return tokens_for_heads(found.type_as(query), total, world)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding as Wan has it: pairs of neighbours, computed in the factors' dtype, given back in x's."""
    real, imaginary = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    return torch.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], dim=-1).flatten(-2).type_as(x)


class _Exchange(torch.autograd.Function):
    """All-to-all with its inverse as its gradient. forth: from own tokens of all heads to all tokens of own heads."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, total: int, world: World, forth: bool) -> torch.Tensor:
        ctx.how = (total, world, forth)
        return (_forth if forth else _back)(x, total, world)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple:  # type: ignore[override]
        total, world, forth = ctx.how
        return (_back if forth else _forth)(gradient, total, world), None, None, None


def heads_for_tokens(x: torch.Tensor, total: int, world: World) -> torch.Tensor:
    """(B, own tokens, heads, d) on each member -> (B, all tokens, own heads, d); differentiable."""
    return _Exchange.apply(x, total, world, True)


def tokens_for_heads(x: torch.Tensor, total: int, world: World) -> torch.Tensor:
    """The inverse: (B, all tokens, own heads, d) -> (B, own tokens, heads, d); differentiable."""
    return _Exchange.apply(x, total, world, False)


def _forth(x: torch.Tensor, total: int, world: World) -> torch.Tensor:
    batch, own, heads, size = x.shape
    each = heads // world.sequence
    sent = x.unflatten(2, (world.sequence, each)).permute(2, 0, 1, 3, 4).contiguous()
    counts = [batch * n * each * size for n in shares(total, world.sequence)]
    received = _all_to_all(sent, [batch * own * each * size] * world.sequence, counts, world)
    return torch.cat([part.view(batch, -1, each, size) for part in received.split(counts)], dim=1)


def _back(x: torch.Tensor, total: int, world: World) -> torch.Tensor:
    batch, _, each, size = x.shape
    lengths = shares(total, world.sequence)
    counts = [batch * n * each * size for n in lengths]
    sent = torch.cat([part.reshape(-1) for part in x.split(lengths, dim=1)])
    own = lengths[world.member]
    received = _all_to_all(sent, counts, [batch * own * each * size] * world.sequence, world)
    parts = received.view(world.sequence, batch, own, each, size)
    return parts.permute(1, 2, 0, 3, 4).reshape(batch, own, world.sequence * each, size)


def _all_to_all(sent: torch.Tensor, counts: list[int], awaited: list[int], world: World) -> torch.Tensor:
    received = sent.new_empty(sum(awaited))
    dist.all_to_all_single(received, sent.view(-1), awaited, counts, group=world.group)
    return received


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: torch.Tensor, total: int, world: World) -> torch.Tensor:
        ctx.world = world
        parts = [own.new_empty(own.shape[0], n, *own.shape[2:]) for n in shares(total, world.sequence)]
        parts[world.member] = own.contiguous()
        assert world.group is not None
        for member, part in enumerate(parts):  # uneven parts: no backend gathers them in one call
            dist.broadcast(part, group=world.group, group_src=member)
        return torch.cat(parts, dim=1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple:  # type: ignore[override]
        # the sum over the members, each of which computes the same loss from the same tokens: no need to ask them
        return _own(gradient, ctx.world) * ctx.world.sequence, None, None


@torch.compiler.disable
def gather_tokens(own: torch.Tensor, total: int, world: World) -> torch.Tensor:
    """(B, own tokens, dim) on each member -> (B, all tokens, dim) on every one; differentiable."""
    return _Gather.apply(own, total, world)
