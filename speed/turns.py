"""Times steps in turn, so that a slower machine affects all of them, and commands; for the scripts of this folder."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

# A small process between this one and a command: a process that a larger one makes has the memory of the larger one as
# its peak, which the kernel keeps over exec.
WITNESS = """
import resource, subprocess, sys
status = subprocess.run(sys.argv[2:]).returncode
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
open(sys.argv[1], "w").write(f"{status} {usage.ru_maxrss} {usage.ru_utime + usage.ru_stime}")
"""


def time_in_turn(
    steps: dict[str, Callable[[], object]], repetitions: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each step in each repetition; the order rotates, and a warm-up is not counted."""
    names = list(steps)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for repetition in range(-1, repetitions):
        turn = repetition % len(names)
        for name in names[turn:] + names[:turn]:
            start = clock()
            steps[name]()
            if repetition >= 0:
                seconds[name].append(clock() - start)
    return seconds


def run_command(command: Sequence[str], environment: dict[str, str]) -> tuple[float, float]:
    """Peak MiB and processor seconds of a command, in a process of its own; a command that fails ends the program."""
    with tempfile.NamedTemporaryFile("r") as file:
        subprocess.run([sys.executable, "-S", "-c", WITNESS, file.name, *command], env=os.environ | environment)
        status, peak, seconds = map(float, file.read().split())
    if status:
        raise SystemExit(f"{' '.join(command)} failed.")
    return peak / 1024, seconds


def describe_ratios(values: Sequence[float], baseline: Sequence[float], digits: int = 3) -> str:
    """Median and quartiles of the ratios, repetition by repetition."""
    ratios = sorted(value / base for value, base in zip(values, baseline, strict=True))
    low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
    return f"{statistics.median(ratios):.{digits}f} (quartiles {low:.3f} to {high:.3f})"
