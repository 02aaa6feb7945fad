"""The page of tier-app as users start it: a process with a folder for its temporary files of its own."""

import contextlib
import os
import queue
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 600  # against hangs only


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Served(NamedTuple):
    """A page that is served: its address, and the lines of the server's log after the one that names it."""

    address: str
    log: queue.Queue


@contextlib.contextmanager
def page_server(models: Sequence[Path], temporary: Path) -> Iterator[Served]:
    """Serves the page of the models until the context ends."""
    variables = {**os.environ, "TMPDIR": str(temporary), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "app.py", *map(str, models), "--port", str(free_port()), "--device", "cpu"]
    with subprocess.Popen(command, cwd=ROOT, env=variables, stderr=subprocess.PIPE, text=True) as process:
        lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=lambda: [lines.put(line) for line in process.stderr], daemon=True).start()
        try:
            told = ""
            while not (found := re.search(r"Open (http://\S+) ", told)):
                assert process.poll() is None, told
                told += lines.get(timeout=START_SECONDS)
            yield Served(found[1], lines)
        finally:
            process.terminate()
