"""
Shared by all commands: name, version, option parser, and one sentence instead of a traceback.

This module imports only light packages, so that --help, --version and a mistyped option answer at once.
"""

import argparse
import contextlib
import difflib
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

BAD_INPUT = 2  # exit code, as argparse's own
INTERRUPTED = 130  # exit code that shells give to a program after Ctrl-C
# Documented errors of libraries that are not a ValueError, OSError or ImportError, by module. A class is looked up
# only if its module was imported: otherwise nothing can have raised it.
LIBRARY_ERRORS = {
    "huggingface_hub.errors": ("StrictDataclassError",),
    "safetensors": ("SafetensorError",),
    "pyarrow.lib": ("ArrowException",),
    "datasets.exceptions": ("DatasetsError",),
}


def command_name(script: str, file: str) -> str:
    """
    The name by which the user started a command.

    Args:
        script: its console script, for example `tier-train`.
        file: its module's `__file__`, whose name it has when it is started from a clone.
    """
    return script if Path(sys.argv[0]).name.startswith("tier-") else Path(file).name


def describe_version(command: str) -> str:
    try:
        return f"{command} {version('tier-clip')}"  # set in pyproject.toml
    except PackageNotFoundError:
        return f"{command}, from a clone that is not installed: its version is in pyproject.toml"


class Parser(argparse.ArgumentParser):
    """
    A parser with --version, which says in one sentence (a ValueError) the fault and the option that was probably
    meant.

    Args:
        prog: the command's name, see `command_name`.
        description: the docstring of its module, shown as it is.
    """

    def __init__(self, prog: str, description: str, **kwargs: Any) -> None:
        options = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False, **kwargs}
        super().__init__(prog=prog, description=description, **options)
        self.add_argument(
            "--version", action="version", version=describe_version(self.prog), help="print the version and exit"
        )

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)

    def parse(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """The arguments; positional ones may stand between options."""
        args, unknown = self.parse_known_intermixed_args(argv)
        if unknown and not unknown[0].startswith("-"):
            raise ValueError(f"unknown argument {unknown[0]}: see {self.prog} --help.")
        if unknown:
            known = re.findall(r"--\w+", self.format_usage())
            close = difflib.get_close_matches(
                unknown[0].split("=")[0].replace("-", "_").replace("__", "--", 1), known, n=1
            )
            hint = f"did you mean {close[0]}?" if close else f"see {self.prog} --help."
            raise ValueError(f"unknown option {unknown[0]}: {hint}")
        return args


@contextlib.contextmanager
def one_sentence_errors(
    prog: str, every_process: bool = False, interrupted: str = "interrupted; the finished parts are kept."
) -> Iterator[None]:
    """
    Ends the program with one sentence on stderr and code 2 if input is bad, or if packages, files, memory or disk
    space are missing, and with code 130 after Ctrl-C. Any other error is a defect of this package and keeps its
    traceback.

    Args:
        prog: the command's name; the sentence begins with it.
        every_process: let each process of a distributed run print its error; by default only the first process does.
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
    """Keeps control characters in names of findings and files from reaching the terminal through the log."""
    factory = logging.getLogRecordFactory()

    def make_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
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
    """One line on an error that a user can correct, without control characters; None for any other error."""
    if isinstance(error, MemoryError):
        return "out of memory: use smaller batches, fewer images or fewer worker processes."
    if is_instance(error, "torch", "OutOfMemoryError"):
        return "out of GPU memory: lower the batch size."
    documented = isinstance(error, (ValueError, OSError, ImportError)) or any(
        is_instance(error, module, name) for module, names in LIBRARY_ERRORS.items() for name in names
    )
    if not documented:
        return None
    message = " ".join(str(error).split()) or type(error).__name__
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)


def is_instance(error: Exception, module: str, name: str) -> bool:
    return isinstance(error, getattr(sys.modules.get(module), name, ()))
