"""Join an existing Ray cluster, or start a small local Ray that talks to nobody outside this machine."""

from __future__ import annotations

import logging
import os

from pipelines.config import RaySettings
from sama.errors import InputError

LOCAL_CPUS = 4  # logical: a loader and two training workers share two cores well, and starve on two slots
STARTUPS = 8


def connect(settings: RaySettings | None = None) -> None:
    """Make `ray` ready in this process; a second call is free."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)

    settings = settings or RaySettings()
    if not ray.is_initialized():
        address = settings.address or os.environ.get("RAY_ADDRESS")
        if address:
            try:
                ray.init(address=address, log_to_driver=True, logging_level=logging.WARNING)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise InputError(f"no Ray cluster answers at {address}: {str(error).splitlines()[0]}") from None
        else:
            # Ray warns on the terminal when a node has started several times as many processes as it may start at once,
            # which is one per core: on a laptop the demo's loader, workers and helpers are that many
            os.environ.setdefault("RAY_worker_maximum_startup_concurrency", str(STARTUPS))
            ray.init(
                address="local",  # never somebody else's Ray that happens to run on this machine
                num_cpus=settings.num_cpus or max(LOCAL_CPUS, os.cpu_count() or 1),
                object_store_memory=settings.object_store_mb * 2**20,
                include_dashboard=False,
                # without a dashboard one of Ray Train's actors complains every second; errors arrive as exceptions
                log_to_driver=bool(os.environ.get("SAMA_RAY_LOGS")),
                logging_level=logging.WARNING,
            )
    _quiet_data()


def _quiet_data() -> None:
    import ray.data
    from ray.util.debug import log_once

    log_once("ray_data_progress_manager_disabled")  # our own progress lines are enough: no word about its bars
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # a consumer may pause for as long as it likes (held-out loss, a checkpoint): never an error
    context.execution_no_progress_timeout_s = -1
    logging.getLogger("ray.data").setLevel(logging.WARNING)
