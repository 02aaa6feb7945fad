"""Commands as processes of their own, which cannot stop the tests for ever."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

REPOSITORY = Path(__file__).parents[2]
SECONDS = 400  # the slowest takes 100 on two busy cores


def run_child(command: Sequence[object], **environment: object) -> subprocess.CompletedProcess:
    """
    Run a command in the repository, with its output as text and with these environment variables.

    Raises:
        TimeoutError: It hung and was ended; the message shows where each of its threads stood.
    """
    # Files, not pipes: a process that outlives the command would hold a pipe open for ever
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONFAULTHANDLER": "1", **{k: str(v) for k, v in environment.items()}},
            stdout=output,
            stderr=errors,
        )
        try:
            process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            for pid in reversed(family(process.pid)):
                os.kill(pid, signal.SIGABRT)  # Python then writes the stack of each thread to stderr
            process.wait(60)
            raise TimeoutError(f"Hung for {SECONDS} s: {process.args}\n{read(errors)[-12_000:]}") from None
        return subprocess.CompletedProcess(process.args, process.returncode, read(output), read(errors))


def read(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace").replace("\r\n", "\n")


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


def end_at_once() -> None:
    """
    End this process, whose work is done, without Python's own end.

    Whatever still holds the group of processes, such as torch's caches of sharded tensors, keeps the threads of gloo
    alive. One that releases the tensors of the last exchange while Python ends would abort the process.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
