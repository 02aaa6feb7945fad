"""Data-loader workers that outlive a SIGTERM."""

import functools
import os
import signal
import threading
from collections.abc import Callable

from torch.utils.data import DataLoader


def ignore_sigterm(worker_id: int, then: Callable[[int], None] | None = None) -> None:
    """
    What a data-loader worker does first: where SIGTERM goes to a whole job, the main process still needs it. Only from
    that process does it take one, which is how that ends a worker that does not end by itself.
    """
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        parent = os.getppid()

        def wait():
            while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
                pass
            os._exit(0)

        threading.Thread(target=wait, daemon=True).start()
    if then is not None:
        then(worker_id)


def shield_workers(loader: DataLoader) -> DataLoader:
    """Makes the workers of a loader, in place, outlive a SIGTERM."""
    inner = getattr(loader, "base_dataloader", loader)  # accelerate's loaders wrap one
    inner.worker_init_fn = functools.partial(ignore_sigterm, then=inner.worker_init_fn)
    return loader
