"""Commands as processes of their own, which cannot stop the tests for ever."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
SECONDS = 400  # the slowest takes 100 on two busy cores


def run_child(command: Sequence[object], **environment: object) -> subprocess.CompletedProcess:
    """
    Run a command in the repository, with its output as text and with these environment variables.

    Raises:
        TimeoutError: It hung and was ended; the message shows where each of its threads stood.
    """
    process = subprocess.Popen(
        [str(word) for word in command],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONFAULTHANDLER": "1", **{k: str(v) for k, v in environment.items()}},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        output, errors = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        for pid in reversed(family(process.pid)):
            os.kill(pid, signal.SIGABRT)  # Python then writes the stack of each thread to stderr
        _, errors = process.communicate()
        raise TimeoutError(f"Hung for {SECONDS} s: {process.args}\n{errors[-12_000:]}") from None
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def family(pid: int) -> list[int]:
    """A process and its children, theirs, and so on."""
    found = [pid]
    for parent in found:
        try:
            children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        except OSError:  # it ended meanwhile, or no Linux
            continue
        found += map(int, children)
    return found


def launcher(processes: int) -> list[object]:
    """What stands before a script: for several processes torchrun, as `accelerate launch` starts one on CPUs."""
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes]
    return [sys.executable, *(several if processes > 1 else [])]
