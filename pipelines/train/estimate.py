"""What a run will need, from its settings: memory per device, seconds, device hours, money, checkpoint bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.config import Settings, TrainSettings
from pipelines.mixture.mixture import Mixture, VideoStream
from pipelines.planner import cost, memory, model
from pipelines.planner.cost import Cost, Rates, Steps, Total
from pipelines.planner.layout import Layout, neighbours
from pipelines.planner.memory import Part
from pipelines.planner.model import Lora, Shape
from pipelines.progress import duration
from sama.errors import InputError
from sama.presets import get_preset
from sama.video import Bucket, buckets

BAR = 32


@dataclass(frozen=True)
class Estimate:
    """parts: bytes of one device; work: a line per stream and shape; exact: whether the steps of each shape are the
    plan's, or every step is taken to be of the largest shape because there is no data to plan with."""

    preset: str
    layout: Layout
    parts: list[Part]
    limit: float
    work: list[Cost]
    total: Total
    checkpoint: float
    staging: float
    exact: bool

    @property
    def bytes(self) -> float:
        return sum(p.bytes for p in self.parts)

    @property
    def fits(self) -> bool:
        return self.bytes <= self.limit


def estimate(settings: Settings, rates: Rates, per_node: int = 8, kind: str = "cuda") -> Estimate:
    """The estimate of a run as it is set. kind: cuda, or cpu for a run without accelerators."""
    preset = get_preset(settings.preset)
    layout = layout_of(settings, per_node)
    layout.check(preset.transformer["num_attention_heads"])
    work, exact = work_of(settings)
    counted = model.counts(preset.name, layout.lora)
    costs = cost.costs(preset, layout, work, rates)
    parts = memory.parts(preset, layout, [w.shape for w in work], kind, _accumulates(costs))
    return Estimate(
        preset.name,
        layout,
        parts,
        rates.device.memory,
        costs,
        cost.total(layout, costs, rates),
        memory.checkpoint_bytes(counted),
        memory.host_staging(preset, layout),
        exact,
    )


def fitting(settings: Settings, rates: Rates, per_node: int = 8, work: Sequence[Steps] | None = None) -> Layout | None:
    """The smallest change of the layout that fits into the device, None when nothing tried does.

    work: the steps of an estimate that was made already, so that nothing is planned twice.
    """
    preset = get_preset(settings.preset)
    work = work_of(settings)[0] if work is None else work
    shapes = [w.shape for w in work]
    layout = layout_of(settings, per_node)
    for other in neighbours(layout, preset.transformer["num_attention_heads"]):
        several = _accumulates(cost.costs(preset, other, work, rates))
        if sum(p.bytes for p in memory.parts(preset, other, shapes, "cuda", several)) <= rates.device.memory:
            return other
    return None


def layout_of(settings: Settings, per_node: int) -> Layout:
    how: TrainSettings = settings.train
    lora = None if how.lora is None else Lora(how.lora.rank, tuple(how.lora.targets), tuple(how.lora.whole))
    return Layout(
        workers=how.most_workers,
        sequence=how.sequence_parallel,
        replicas=how.hsdp_replicas,
        precision=how.precision,
        checkpointing=how.activation_checkpointing,
        eight_bit=how.optimizer == "adamw8bit",
        ema_on_cpu=how.ema_device == "cpu",
        offload=how.cpu_offload,
        lora=lora,
        text_live=settings.text.mode == "live" and not settings.text.offload and not settings.text.sharded,
        per_node=per_node,
    )


def work_of(settings: Settings) -> tuple[list[Steps], bool]:
    """Steps of every stream and shape: the plan's where the data root can be planned with, else of the largest."""
    from pipelines.mixture.mixture import load_mixture
    from pipelines.mixture.plan import BatchPlan
    from pipelines.samples import storage

    mixture = load_mixture(settings.mixture)
    micro = settings.train.micro_batch
    if storage.is_folder(storage.join(settings.data, "index")):
        facts = BatchPlan.from_mixture(mixture, settings.data).summary()["buckets"]
        return [
            Steps(_shape(mixture, stream, label, getattr(micro, stream)), found["steps"], _batch(mixture, stream))
            for stream, shapes in facts.items()
            for label, found in shapes.items()
            if found["steps"]
        ], True
    turns = {s: getattr(mixture.schedule, s) for s in mixture.active()}
    return [
        Steps(
            _shape(mixture, stream, _largest(mixture, stream), getattr(micro, stream)),
            round(mixture.steps * turn / sum(turns.values())),
            _batch(mixture, stream),
        )
        for stream, turn in turns.items()
    ], False


def _accumulates(costs: Sequence[Cost]) -> bool:
    return any(c.rounds.micro_steps > 1 for c in costs)


def _batch(mixture: Mixture, stream: str) -> int:
    return mixture.stream(stream).global_batch


def _shape(mixture: Mixture, stream: str, label: str, samples: int) -> Shape:
    frames, height, width = (int(n) for n in label.split("x"))
    return Shape(stream, frames, height, width, samples, mixture.anchors.n)


def _largest(mixture: Mixture, stream: str) -> str:
    rules = mixture.buckets
    lengths = rules.frames if isinstance(mixture.stream(stream), VideoStream) else (1,)
    found: list[Bucket] = buckets(rules.area, rules.multiple, rules.aspect, lengths)
    best = max(found, key=lambda b: (b.frames * b.height * b.width, b.width))
    return f"{best.frames}x{best.height}x{best.width}"


def lines(found: Estimate, rates: Rates, grace_s: float, disk_gb_s: float) -> list[str]:
    """The estimate as a person reads it."""
    layout = found.layout
    out = [
        f"{found.preset} on {layout.workers} x {rates.device.name}, {layout.data_ranks} data ranks"
        + (f" of {layout.sequence} devices" if layout.sequence > 1 else ""),
        f"memory of one device: {_gb(found.bytes)} of {_gb(found.limit)}",
    ]
    most = max(p.bytes for p in found.parts)
    for part in found.parts:
        bar = "█" * round(BAR * part.bytes / most) or "▏"
        mark = " (allowance)" if part.allowance else ""
        out.append(f"  {part.name:17} {_gb(part.bytes):>9}  {bar:{BAR}}  {part.note}{mark}")
    out.append("a step" + ("" if found.exact else " (no data root to plan with: every step at the largest shape)"))
    for line in found.work:
        shape, cut = line.steps.shape, line.rounds
        filler = f", {cut.wasted:.1%} of the slots are filler" if cut.wasted else ""
        out.append(
            f"  {shape.stream:5} {shape.label:12} x{line.steps.steps:<7} {line.tokens / 1e6:7.2f} M tokens "
            f"{line.flops / 1e15:8.2f} PFLOP {line.seconds:8.1f} s (encoders {line.encode:.1f} s), "
            f"{cut.micro_steps} x {shape.samples} per rank{filler}"
        )
    total = found.total
    out.append(
        f"whole run: {total.steps} steps, {duration(total.seconds)} at {rates.mfu:.0%} MFU "
        f"(encoders at {rates.encode_mfu:.0%}), {total.device_hours:,.0f} device hours"
        + ("" if total.money is None else f", {total.money:,.0f} at {rates.price:g} per device hour")
    )
    if total.wasted:
        out.append(f"  {total.wasted:.1%} of it goes into filler slots: {better_groups(found)}")
    save = found.checkpoint / (disk_gb_s * 1e9 * max(1, -(-layout.workers // layout.per_node)))
    out.append(
        f"checkpoint: {_gb(found.checkpoint)}, staged in {_gb(found.staging)} of host memory per node, "
        f"{duration(save)} to write at {disk_gb_s:g} GB/s per node"
        + ("" if save <= grace_s else f": longer than the {duration(grace_s)} of notice before a preemption")
    )
    return out


def better_groups(found: Estimate) -> str:
    """Numbers of data ranks nearby that leave no filler."""
    ranks, batches = found.layout.data_ranks, [(w.steps.global_batch, w.steps.shape.samples) for w in found.work]
    fitting = [n for n in range(1, 2 * ranks + 1) if all(b % (n * s) == 0 for b, s in batches)]
    near = sorted(sorted(fitting, key=lambda n: abs(n - ranks))[:3])
    return f"{' or '.join(map(str, near))} data ranks would leave none" if near else "no number nearby leaves none"


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def as_tree(found: Estimate) -> dict[str, Any]:
    """Plain values, for --json."""
    return {**asdict(found), "bytes": found.bytes, "fits": found.fits}


def refuse(found: Estimate, better: Layout | None) -> InputError:
    """The error of a layout that does not fit."""
    worst: Sequence[Part] = sorted(found.parts, key=lambda p: -p.bytes)[:2]
    parts = " and ".join(f"{p.name} {_gb(p.bytes)}" for p in worst)
    hint = f"this fits: {better.describe()}" if better else "no layout on up to 16 times the devices fits"
    return InputError(f"needs {_gb(found.bytes)} per device, which has {_gb(found.limit)} ({parts}); {hint}")


__all__ = ["Estimate", "as_tree", "estimate", "fitting", "layout_of", "lines", "refuse", "work_of"]
