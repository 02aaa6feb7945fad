"""The pool of worker processes that write shards. The work of a worker is in `shards`."""

import multiprocessing
import os
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from pathlib import Path

from processing_tier.prepare.options import PrepareOptions
from processing_tier.prepare.plan import Plan
from processing_tier.prepare.shards import initialize_worker, write_shard
from processing_tier.progress import progress


def start_method() -> multiprocessing.context.BaseContext:
    """Where possible, workers fork from a server process without threads that has imported everything."""
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload([__name__])
    return context


def make_shards(
    plan: Plan,
    output_dir: Path,
    work_dir: Path,
    options: PrepareOptions,
    context: multiprocessing.context.BaseContext,
    num_workers: int | None,
    allowed: int,
) -> list[dict]:
    """Write the missing shards; the images that failed. Stops early at more than `allowed` failures."""
    if not plan.todo:
        return []
    failures = []
    counters = context.Value("q", 0), context.Value("q", 0), context.Event()
    done, failed, stop = counters
    workers = min(num_workers or count_cores(), len(plan.todo))
    total = sum(shard.stop - shard.start for shard in plan.todo)
    with (
        progress(description="preparing", unit="image", total=total) as bar,
        ProcessPoolExecutor(workers, context, initialize_worker, counters) as executor,
    ):
        try:
            pending = {executor.submit(write_shard, work_dir, output_dir, shard, options) for shard in plan.todo}
            while pending:
                finished, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                bar.update(done.value - bar.n)
                failures += [failure for future in finished for failure in future.result()]
                if failed.value > allowed:
                    stop.set()
            bar.update(done.value - bar.n)
        finally:
            stop.set()  # after an error, the other workers stop at their next image
            executor.shutdown(cancel_futures=True)
    return failures


def count_cores() -> int:
    """Cores that this process may use. In a scheduler's job, only the job's cores."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
