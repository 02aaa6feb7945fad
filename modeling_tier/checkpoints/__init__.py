"""
Checkpoints of other code bases as models of this package, and CLIP models as OpenCLIP writes them.

`tensor_files.py` reads the files and runs nothing of what they hold. Sizes are read from the tensors. Every tensor of
a file must be one that the model has, in its shape, and the other way round. There is one file per layout.
"""

from .loading import load_source
from .openclip import OPENCLIP_CONFIG, OPENCLIP_WEIGHTS, to_openclip
from .source import KINDS, Source, open_source

__all__ = ["KINDS", "OPENCLIP_CONFIG", "OPENCLIP_WEIGHTS", "Source", "load_source", "open_source", "to_openclip"]
