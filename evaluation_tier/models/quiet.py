"""Loading a model without what transformers prints about its tensors: whoever loads it checks them, and says so."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def errors_only() -> Iterator[None]:
    """Without the warnings of transformers."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
