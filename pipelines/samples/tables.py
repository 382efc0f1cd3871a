"""The tables of a data root, column by column. Within version 1 columns may be added, never dropped."""

from __future__ import annotations

import pyarrow as pa

WORD = pa.dictionary(pa.int32(), pa.string())  # few distinct values
DIGEST = pa.binary(32)
TIME = pa.timestamp("us", tz="UTC")

KINDS = ("video_edit", "image_edit", "text_to_video")
CATEGORIES = (
    "add", "remove", "replace", "attribute", "background", "style",
    "lighting", "text", "camera", "creative", "other",
)  # fmt: skip
REJECT_REASONS = (
    "missing_source", "missing_target", "unreadable_source", "unreadable_target", "no_instruction",
    "no_caption", "bad_row", "wrong_media_type", "duplicate", "truncated_archive", "unreadable_archive",
    "digest_mismatch", "unexpected_error",
)  # fmt: skip
DECISIONS = ("kept", "rejected", "failed", "unscored")


def _media(side: str) -> list[tuple[str, pa.DataType]]:
    return [
        (f"{side}_uri", WORD), (f"{side}_offset", pa.int64()), (f"{side}_size", pa.int64()),
        (f"{side}_sha256", DIGEST), (f"{side}_width", pa.int16()), (f"{side}_height", pa.int16()),
        (f"{side}_fps", pa.float32()), (f"{side}_frames", pa.int32()), (f"{side}_codec", pa.string()),
        (f"{side}_has_audio", pa.bool_()),
    ]  # fmt: skip


INDEX = pa.schema(
    [("key", pa.string()), ("sample_digest", DIGEST)]
    + [(n, WORD) for n in ("dataset", "subset", "kind", "category", "language", "license", "split")]
    + [("source_group", pa.int64()), ("motion_preserving", pa.bool_())]
    + _media("source")
    + _media("target")
    + [("skip_head", pa.int16()), ("skip_tail", pa.int16()), ("pairing", WORD), ("policy_fps", pa.float32())]
    + [("json_uri", WORD), ("json_offset", pa.int64()), ("json_size", pa.int64())]
    + [
        (n, pa.string())
        for n in (
            "instruction", "caption", "category_raw", "upstream_id", "dataset_revision", "editor",
            "license_evidence", "attribution", "source_url", "origin_json", "extra_json",
        )
    ]
    + [("ingested_at", TIME)]
)  # fmt: skip

REJECTS = pa.schema(
    [
        ("dataset", WORD), ("manifest", pa.string()), ("row", pa.int64()), ("upstream_id", pa.string()),
        ("reason", WORD), ("detail", pa.string()), ("raw_json", pa.string()),
    ]
)  # fmt: skip

SIGNALS = pa.schema(
    [("sample_digest", DIGEST), ("signals_version", pa.int16()), ("status", WORD)]
    + [(n, pa.string()) for n in ("error_stage", "error_type", "error")]
    + [
        (n, pa.float32())
        for n in (
            "mad", "changed_area", "motion_source", "motion_target", "motion_ratio", "flicker",
            "blur_source", "blur_target", "blockiness", "structure_kept", "text_strokes_source", "text_strokes_target",
            "text_similarity",
        )
    ]
    + [("changed_box", pa.list_(pa.float32(), 4))]
    + [(f"black_border_{s}", pa.list_(pa.int32(), 4)) for s in ("source", "target")]
    + [(f"shot_cuts_{s}", pa.list_(pa.int32())) for s in ("source", "target")]
    + [(f"prints_{s}", pa.list_(pa.int64())) for s in ("source", "target")]  # see curate.prints; 0: nothing to see
    + [("static", pa.bool_()), ("text_source", pa.string()), ("text_target", pa.string())]
    + [("instruction_words", pa.int32()), ("instruction_language", WORD)]
    + [(n, pa.float32()) for n in ("nsfw_score", "minor_risk_score", "watermark_score", "face_area")]
    + [("face_count", pa.int16()), ("seconds", pa.float32()), ("created_at", TIME)]
)  # fmt: skip

SCORES = ("instruction_following", "visual_quality", "content_preservation", "motion_consistency")
_ASKED = [
    ("model", WORD), ("model_revision", WORD), ("prompt_id", WORD), ("prompt_version", WORD), ("turn", pa.int8()),
    ("seed", pa.int64()), ("temperature", pa.float32()), ("frames", pa.int16()), ("width", pa.int16()),
    ("height", pa.int16()), ("status", WORD), ("error", pa.string()),
]  # fmt: skip
_COST = [
    ("raw_answer", pa.string()), ("prompt_tokens", pa.int32()), ("completion_tokens", pa.int32()),
    ("latency_s", pa.float32()), ("endpoint_host", WORD), ("created_at", TIME),
]  # fmt: skip
JUDGEMENTS = pa.schema(
    [("sample_digest", DIGEST), ("key", pa.string()), ("judge_id", WORD), *_ASKED]
    + [(score, pa.int8()) for score in SCORES]
    + [("explanations_json", pa.string()), *_COST]
)
CAPTIONS = pa.schema(
    [
        ("target_sha256", DIGEST), ("key", pa.string()), ("captioner_id", WORD), *_ASKED,
        ("caption", pa.string()), *_COST,
    ]
)  # fmt: skip

SELECTION = pa.schema(
    [
        ("key", pa.string()), ("sample_digest", DIGEST), ("decision", WORD),
        ("reasons", pa.list_(pa.string())), ("dataset", WORD), ("category", WORD),
    ]
)  # fmt: skip

NEAR = pa.schema(
    [
        ("source_group", pa.int64()), ("near_group", pa.int64()), ("bits", pa.float32()), ("samples", pa.int32()),
        ("heldout", pa.bool_()),
    ]
)  # fmt: skip

BLOCKLIST = pa.schema(
    [
        ("sha256", DIGEST), ("source_group", pa.int64()), ("source_url", pa.string()),
        ("reason", pa.string()), ("date", TIME),
    ]
)  # fmt: skip
