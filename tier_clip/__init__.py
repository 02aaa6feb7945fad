"""
The distribution under one name: its version, its models, processors and pipeline registered with transformers' Auto
classes, and the two functions that do what `tier-train` and `tier-eval` do. The code lives in `modeling_tier`,
`processing_tier`, `evaluation_tier` and `training_tier`.
"""

from importlib.metadata import PackageNotFoundError, version

import modeling_tier  # noqa: F401 (registers models and pipeline)
import processing_tier  # noqa: F401 (registers processors)
from tier_clip.evaluation import evaluate
from training_tier.train import train

__all__ = ["evaluate", "train"]

try:
    __version__ = version("tier-clip")  # set in pyproject.toml
except PackageNotFoundError:  # a clone that is not installed
    __version__ = "not installed"
