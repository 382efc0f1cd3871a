"""What a plan will train, counted from its closed forms: no step is visited."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from pipelines.mixture.mixture import EDIT, VideoStream
from sama.video import Bucket

if TYPE_CHECKING:
    from pipelines.mixture.plan import BatchPlan

VAE_TIME, VAE_SPACE, PATCH = 4, 8, 2  # Wan 2.1: 4x in time, 8x in space, patches of 2x2
SEMANTIC_TOKENS = 65  # per anchor frame


def tokens(bucket: Bucket, anchors: int = 1) -> int:
    """Tokens of one sample as Wan 2.1 sees it: source, target and semantic ones."""
    latent_frames = (bucket.frames - 1) // VAE_TIME + 1
    side = VAE_SPACE * PATCH
    return 2 * latent_frames * (bucket.height // side) * (bucket.width // side) + anchors * SEMANTIC_TOKENS


def summarise(plan: BatchPlan) -> dict[str, Any]:
    """Counts over the whole run, as plain values.

    steps, samples: by stream. dataset, category, task, license: samples seen, by name. buckets: per stream and
    shape (frames x height x width) the steps and the tokens of a sample. sources: per source its rows, samples
    seen, epochs, share, held-out rows and what every filter left out. repeats: shapes with fewer rows than a global
    batch, whose samples repeat inside one batch. moved: rows trained at a neighbour of their nearest shape.
    """
    mixture, draws, steps = plan.mixture, plan.draws(), plan.bucket_steps()
    dataset, category, task, license_ids = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    seen: Counter[tuple[str, int]] = Counter()
    rows: Counter[tuple[str, int]] = Counter()
    in_bucket: Counter[tuple[str, Bucket]] = Counter()
    for number, (group, drawn) in enumerate(zip(plan.groups, draws, strict=True)):
        seen[group.stream, group.source] += drawn
        rows[group.stream, group.source] += group.size
        in_bucket[group.stream, group.bucket] += group.size
        dataset[group.dataset] += drawn
        counts = plan.facts["group_counts"][number]
        for name, share in _shares(counts["category"]):
            category[name] += round(share * drawn)
        for name, share in _shares(counts["license"]):
            license_ids[name] += round(share * drawn)
        for kind, share in _shares(counts["kind"]):
            for name, ratio in _ratios(plan, group.stream, kind):
                task[name] += round(share * drawn * ratio)
    return {
        "name": mixture.name,
        "stage": mixture.stage,
        "digest": plan.digest,
        "mixture_digest": mixture.digest,
        "selections": plan.facts["selections"],
        "steps": {s: sum(b.values()) for s, b in steps.items()},
        "samples": {s: sum(b.values()) * mixture.stream(s).global_batch for s, b in steps.items()},
        "global_batch": {s: mixture.stream(s).global_batch for s in steps},
        "dataset": dict(dataset.most_common()),
        "category": dict(category.most_common()),
        "task": dict(task.most_common()),
        "license": dict(license_ids.most_common()),
        "buckets": {
            s: {
                label(b): {"steps": n, "rows": in_bucket[s, b], "tokens": tokens(b, mixture.anchors.n)}
                for b, n in x.items()
            }
            for s, x in steps.items()
        },
        "sources": [
            {**source, "rows": rows[key], "samples": seen[key], "epochs": seen[key] / rows[key]}
            for source in plan.facts["summary"]["sources"]
            for key in [(source["stream"], source["number"])]
        ],
        "left_out": plan.facts["summary"]["left_out"],
        "moved": {s: plan.facts["summary"][f"moved_{s}"] for s in steps},
        "repeats": [
            f"{s} {label(b)}" for s, x in steps.items() for b in x if in_bucket[s, b] < mixture.stream(s).global_batch
        ],
    }


def lines(plan: BatchPlan, batches: int = 6) -> list[str]:
    """The summary as a person reads it, with the first global batches."""
    facts = plan.summary()
    out = [
        f"{facts['name']}: stage {facts['stage']}, {plan.steps} steps, plan {facts['digest'][:12]}",
        *(
            f"  {s} stream: {n} steps of {facts['global_batch'][s]}, {facts['samples'][s]} samples"
            for s, n in facts["steps"].items()
        ),
        "sources",
    ]
    for source in facts["sources"]:
        lost = ", ".join(
            f"{n} {why}" for why, n in source["counts"].items() if n and why not in ("in the index", "eligible")
        )
        out.append(
            f"  {source['stream']:5} {source['dataset']:16} {source['share']:6.1%} of its stream, "
            f"{source['rows']} rows, {source['samples']} samples, {source['epochs']:.2f} epochs"
        )
        out.append(f"        of {source['counts']['in the index']} in the index: {lost or 'all used'}")
    out += [f"  {name}: optional, without a sample, left out" for name in facts["left_out"]]
    for title in ("dataset", "category", "task", "license"):
        total = sum(facts[title].values()) or 1
        out.append(f"{title}: " + ", ".join(f"{name} {n / total:.1%}" for name, n in facts[title].items()))
    out.append("shapes (frames x height x width)")
    for stream, shapes in facts["buckets"].items():
        for name, facts_of in shapes.items():
            size = f"{facts_of['rows']} rows, {facts_of['tokens'] * facts['global_batch'][stream]} tokens a step"
            out.append(f"  {stream:5} {name:12} {facts_of['steps']} steps, {size}")
        if facts["moved"][stream]:
            out.append(f"  {stream:5} {facts['moved'][stream]} rows of rare shapes train at a neighbouring one")
    if facts["repeats"]:
        out.append(f"  fewer rows than a global batch, so samples repeat inside one: {', '.join(facts['repeats'])}")
    out.append("first batches")
    for step in range(min(batches, plan.steps)):
        batch = plan[step]
        tasks = ", ".join(f"{n} {name}" for name, n in sorted(Counter(s.task for s in batch.slots).items()))
        out.append(f"  step {step}: {batch.stream} {label(batch.bucket)}, {tasks}; {batch.slots[0].key}, ...")
    return out


def label(bucket: Bucket) -> str:
    return f"{bucket.frames}x{bucket.height}x{bucket.width}"


def _shares(counts: dict[str, int]) -> list[tuple[str, float]]:
    return [(name, n / sum(counts.values())) for name, n in sorted(counts.items())]


def _ratios(plan: BatchPlan, stream: str, kind: str) -> list[tuple[str, float]]:
    settings = plan.mixture.stream(stream)
    if kind != "text_to_video" or not isinstance(settings, VideoStream):
        return [(EDIT, 1.0)]
    return [(n, r / sum(settings.pretext.values())) for n, r in sorted(settings.pretext.items())]
