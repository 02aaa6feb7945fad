"""What every command has in common: the parser of its options, and one sentence instead of a traceback.

Nothing heavy is imported here, so that --help and a mistyped option answer at once.
"""

import argparse
import contextlib
import difflib
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

BAD_INPUT = 2  # exit code, as argparse's own
INTERRUPTED = 130  # exit code, as shells tell of a program that Ctrl-C has ended
# Classes of errors that libraries document without deriving them from ValueError, OSError or ImportError, by module.
# A class is looked up only where its module has been imported: else nothing can have raised it.
LIBRARY_ERRORS = {
    "huggingface_hub.errors": ("StrictDataclassError",),
    "safetensors": ("SafetensorError",),
    "pyarrow.lib": ("ArrowException",),
    "datasets.exceptions": ("DatasetsError",),
}


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, as a ValueError, and which option was meant."""

    def error(self, message: str):
        raise ValueError(message)

    def parse(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """The arguments; positional ones may stand between options."""
        args, unknown = self.parse_known_intermixed_args(argv)
        if unknown and not unknown[0].startswith("-"):
            raise ValueError(f"unknown argument {unknown[0]}: see --help.")
        if unknown:
            known = re.findall(r"--\w+", self.format_usage())
            close = difflib.get_close_matches(
                unknown[0].split("=")[0].replace("-", "_").replace("__", "--", 1), known, n=1
            )
            hint = f"did you mean {close[0]}?" if close else "see --help."
            raise ValueError(f"unknown option {unknown[0]}: {hint}")
        return args


def find_existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    return next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())


def can_write(folder: Path) -> bool:
    """Whether the folder, or the one that it would be made in, takes a file; without making it."""
    try:  # the permissions alone say yes to root on a disk that is read-only, and in /proc
        tempfile.TemporaryFile(dir=find_existing(folder)).close()
    except OSError:
        return False
    return True


def check_writable(folder: Path, option: str) -> None:
    """ValueError when the folder could not be written; known before any work."""
    if not can_write(folder):
        raise ValueError(f"the folder {folder} cannot be written: choose another {option}.")


@contextlib.contextmanager
def one_sentence_errors(
    prog: str, every_process: bool = False, interrupted: str = "interrupted; what was finished is kept."
) -> Iterator[None]:
    """
    Ends the program with one sentence on stderr and code 2 for what bad input, missing packages, files, memory and
    space raise, and with code 130 after Ctrl-C. Any other error is a defect of this package and keeps its traceback.

    Args:
        prog: the command's name, which the sentence begins with.
        every_process: let each process of a distributed run tell its own error; by default the first one alone does.
        interrupted: what to say after Ctrl-C.

    Raises:
        SystemExit: see above.
    """
    try:
        with escaped_logs():
            yield
    except KeyboardInterrupt:
        tell(f"{prog}: {interrupted}", every_process)
        raise SystemExit(INTERRUPTED) from None
    except Exception as error:
        sentence = describe_error(error)
        if sentence is None:
            raise
        tell(f"{prog}: error: {sentence}", every_process)
        raise SystemExit(BAD_INPUT) from None


def tell(message: str, every_process: bool) -> None:
    if every_process or os.environ.get("RANK", "0") == "0":
        print(escape(message), file=sys.stderr)


def escape(message: str) -> str:
    """See `processing_tier.escaping.printable`, which most messages need not even import."""
    if message.replace("\n", "").isprintable():
        return message
    from processing_tier.escaping import printable

    return printable(message)


@contextlib.contextmanager
def escaped_logs() -> Iterator[None]:
    """Names of findings and files in the log of a command cannot drive the terminal."""
    factory = logging.getLogRecordFactory()

    def make_record(*args, **kwargs) -> logging.LogRecord:
        record = factory(*args, **kwargs)
        message = record.getMessage()
        if (escaped := escape(message)) != message:
            record.msg, record.args = escaped, None
        return record

    logging.setLogRecordFactory(make_record)
    try:
        yield
    finally:
        logging.setLogRecordFactory(factory)


def describe_error(error: Exception) -> str | None:
    """One line on an error that a user can mend, without control characters; None for any other error."""
    if isinstance(error, MemoryError):
        return "the memory does not suffice: use smaller batches, fewer images or fewer worker processes."
    if is_instance(error, "torch", "OutOfMemoryError"):
        return "the memory of the GPU does not suffice: lower the batch size."
    documented = isinstance(error, (ValueError, OSError, ImportError)) or any(
        is_instance(error, module, name) for module, names in LIBRARY_ERRORS.items() for name in names
    )
    if not documented:
        return None
    message = " ".join(str(error).split()) or type(error).__name__
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)


def is_instance(error: Exception, module: str, name: str) -> bool:
    return isinstance(error, getattr(sys.modules.get(module), name, ()))
