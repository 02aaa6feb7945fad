"""Skips tests that need OpenCLIP's library, the extra [open_clip], where it does not start."""

import pytest


def starts() -> bool:
    try:
        import open_clip  # noqa: F401
    except Exception:  # not installed, or with a torchvision that does not fit torch
        return False
    return True


needs_open_clip = pytest.mark.skipif(not starts(), reason="needs the extra [open_clip]")
