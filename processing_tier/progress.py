"""The progress of a long loop: a bar on a terminal, plain lines in a log. All packages but the models' use it."""

import contextlib
import sys
from collections.abc import Iterable, Iterator
from time import monotonic
from typing import Any, TypeAlias

import datasets
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

BAR_AFTER, LINES_AFTER = 3.0, 10.0  # seconds; shorter loops show nothing
LONGEST_SILENCE = 600.0  # seconds between two lines of a loop of many hours


class PlainLines:
    """
    Writes a line to stderr whenever another tenth of the work is done, and at least every ten minutes. It has the
    interface of the parts of tqdm that the packages use.

    Args:
        items (`Iterable`, *optional*): what the loop goes through; without it, call `update`.
        description (`str`), unit (`str`): what is done, and the name of one item, such as `"image"`.
        total (`int`): the number of items.
        initial (`int`, *optional*, defaults to 0): items that an earlier run has done.
    """

    def __init__(self, items: Iterable | None, description: str, unit: str, total: int, initial: int = 0):
        self.items, self.description, self.unit = items, description, unit
        self.total, self.initial, self.n = total, initial, initial
        self.started = self.told = monotonic()
        self.tenths = 10 * initial // max(total, 1)

    def __enter__(self) -> "PlainLines":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def __iter__(self) -> Iterator:
        for item in self.items:
            yield item
            self.update()

    def update(self, count: int = 1) -> None:
        self.n += count
        tenths, now = 10 * self.n // max(self.total, 1), monotonic()
        is_due = tenths > self.tenths or now - self.told >= LONGEST_SILENCE
        self.tenths = max(tenths, self.tenths)
        if count and is_due and now - self.started >= LINES_AFTER:
            self.told = now
            sys.stderr.write(self.line(now - self.started) + "\n")
            sys.stderr.flush()

    def line(self, seconds: float) -> str:
        """What is done after so many seconds."""
        done = (
            f"{self.description}: {100 * self.n // max(self.total, 1)} % ({self.n:,} of {self.total:,} {self.unit}s)"
        )
        if self.n >= self.total:
            return f"{done} in {describe_seconds(seconds)}"
        left = seconds * (self.total - self.n) / (self.n - self.initial)
        return f"{done} in {describe_seconds(seconds)}, about {describe_seconds(left)} left"

    def close(self) -> None:
        """Nothing to clean up; tqdm has this."""


Progress: TypeAlias = "tqdm | PlainLines"


def progress(
    items: Iterable | None = None,
    description: str = "",
    unit: str = "item",
    total: int | None = None,
    silent: bool = False,
) -> Progress:
    """
    The progress of a loop that may take more than some seconds.

    Args:
        items (`Iterable`, *optional*): what the loop goes through; without it, the loop calls `update`.
        description (`str`): what is done, such as `"hashing images"`.
        unit (`str`, *optional*, defaults to `"item"`): the name of one item, in the singular.
        total (`int`, *optional*): the number of items, by default the length of `items`.
        silent (`bool`, *optional*, defaults to `False`): show nothing, such as in all processes but the first.
    """
    total = len(items) if total is None else total  # type: ignore[arg-type]
    if silent or is_terminal():
        return tqdm(items, description, total, unit=unit, leave=False, delay=BAR_AFTER, disable=silent)
    return PlainLines(items, description, unit, total)


def is_terminal() -> bool:
    """Whether stderr can show a bar that is drawn again and again. A log file and a notebook cannot."""
    return sys.stderr is not None and sys.stderr.isatty()


def describe_seconds(seconds: float) -> str:
    """A duration for people: 12 s, 25 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


@contextlib.contextmanager
def library_bars() -> Iterator[None]:
    """
    Switches off, inside the block, the bars of transformers (of loading and writing weights), and those of datasets
    where stderr is a log.
    """
    of_transformers = transformers_logging.is_progress_bar_enabled()
    of_datasets = datasets.are_progress_bars_disabled()
    transformers_logging.disable_progress_bar()
    if not is_terminal():
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if of_transformers:
            transformers_logging.enable_progress_bar()
        if not of_datasets:
            datasets.enable_progress_bars()


def between_bars() -> Any:
    """A context in which a line of the log may be written while bars are shown."""
    return tqdm.external_write_mode(file=sys.stderr)
