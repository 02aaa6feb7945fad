"""Data-loader workers that ignore a SIGTERM to the whole job."""

import functools
import os
import signal
import threading
from collections.abc import Callable

from torch.utils.data import DataLoader


def ignore_sigterm(worker_id: int, then: Callable[[int], None] | None = None) -> None:
    """
    Runs first in a data-loader worker. A SIGTERM to the whole job must not end it, because the main process still
    needs it. Workers obey SIGTERM only from the main process, which ends hanging workers this way.
    """
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        parent = os.getppid()

        def wait() -> None:
            while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
                pass
            os._exit(0)

        threading.Thread(target=wait, daemon=True).start()
    if then is not None:
        then(worker_id)


def shield_workers(loader: DataLoader) -> DataLoader:
    """Makes the workers of a loader ignore SIGTERM, in place; see [`ignore_sigterm`]."""
    inner = getattr(loader, "base_dataloader", loader)  # accelerate's loaders wrap one
    inner.worker_init_fn = functools.partial(ignore_sigterm, then=inner.worker_init_fn)
    return loader
