"""What a training worker is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Job:
    """Plain values, because it travels. holder: the lease on the run folder."""

    run: str
    plan: str
    plan_digest: str
    settings: dict[str, Any]
    holder: str
    tracking_uri: str | None = None
    mlflow_run_id: str | None = None
    print_lines: bool = True
