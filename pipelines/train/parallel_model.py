"""What is put onto the model from outside, in this order: recomputation, compilation, sharding. Names stay as they are.

Sequence parallelism (parallel_sequence.py) comes first of all: it only swaps what a block's self-attention calls.
"""

from __future__ import annotations

import difflib
import warnings
from typing import Any

import torch
from diffusers.models.attention_dispatch import AttentionBackendName
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from pipelines.config import TrainSettings
from pipelines.train import parallel_sequence
from pipelines.train.parallel import World
from pipelines.train.parallel_recompute import recompute
from sama.errors import InputError

BACKEND = "inductor"
GRAPHS = 64  # variants of one piece of code that may be compiled: dynamo's own limit of 8 is too low for us


def parallelize(model: Any, world: World, how: TrainSettings) -> Any:
    """Apply what the settings ask for to a transformer with `blocks`, in place; parameters become float32 shards."""
    if how.cpu_offload and world.device.type == "cpu":
        raise InputError("train.cpu_offload moves the weights off an accelerator, and this worker has none")
    selective = how.activation_checkpointing == "selective"
    if world.sequence > 1:
        parallel_sequence.split(model, world)
    elif how.compile and selective:
        parallel_sequence.keep_apart(model, world)
    if how.attention is not None:
        choose_attention(model, how.attention, selective)
    recompute(model, how.activation_checkpointing)
    if how.compile:
        compile_blocks(model)
    return shard(model, world, how.precision, how.cpu_offload)


def choose_attention(model: Any, name: str, selective: bool = False) -> None:
    """Let every attention of `model` go through one of diffusers' backends.

    selective: whether the results of self-attention are to be kept, which works for torch's own kernels only.
    InputError for an unknown name, and for a backend that this machine lacks.
    """
    known = [backend.value for backend in AttentionBackendName]
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
        raise InputError(f"train.attention: {name} is not an attention backend; {hint}")
    if selective and (name == "_native_math" or "native" not in name):
        raise InputError(
            f"train.attention = {name}: train.activation_checkpointing = selective keeps the results of torch's own "
            "attention kernels only; use block"
        )
    try:
        model.set_attention_backend(name)
    except (ImportError, RuntimeError, ValueError, NotImplementedError) as reason:
        raise InputError(f"train.attention: {name} cannot be used here: {str(reason).splitlines()[0]}") from None


def compile_blocks(model: Any) -> None:
    """Compile each block in place, once for all shapes and all blocks."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
    for block in model.blocks:
        block.compile(dynamic=True, backend=BACKEND)


def shard(model: Any, world: World, precision: str = "float32", cpu_offload: bool = False) -> Any:
    """Apply `fully_shard` to the matrix products of each block and to the rest, in place.

    bfloat16: only the weights of the blocks' attentions and feed-forward layers (with the query and key norms, whose
    outputs meet the values in attention) are gathered and used in bfloat16. Modulation tables, layer norms, time
    embedding, RoPE and heads stay float32, and so do masters and gradient reduction: a bfloat16 timestep has steps of
    4 above 512. Nothing is cast on the way in: the model hands its blocks what they need, told by `compute_dtype`.
    """
    offload = CPUOffloadPolicy() if cpu_offload else OffloadPolicy()
    whole = MixedPrecisionPolicy(param_dtype=torch.float32, reduce_dtype=torch.float32, cast_forward_inputs=False)
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    # the objective takes its outputs as they are and changes none in place, which is what FSDP2 warns of at every step
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    if precision == "bfloat16":
        model.compute_dtype = torch.bfloat16
    policy = half if precision == "bfloat16" else whole
    for block in model.blocks:
        # the little that is left of a block stays with the root: no group of its own to gather
        products = [block.attn1, block.attn2, block.ffn]
        fully_shard(products, mesh=world.mesh, mp_policy=policy, offload_policy=offload)
    # by default the outermost group stays gathered until the next backward: after a forward without one (held-out
    # loss, samples) the model would hold whole parameters that neither optimizer nor checkpoint knows
    return fully_shard(model, mesh=world.mesh, mp_policy=whole, offload_policy=offload, reshard_after_forward=True)
