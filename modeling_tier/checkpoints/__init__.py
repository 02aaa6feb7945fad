"""
Converts checkpoints of other code bases to models of this package, and CLIP models to OpenCLIP's layout.

There is one file per layout. `tensor_files.py` reads the files without running their code. Sizes come from the
tensors, and the tensors of a file and of its model must match one to one, in name and shape. Pixels are not handled
here; see `processing_tier/checkpoint_image_processors.py`.
"""

from .hub import download_checkpoint
from .loading import describe_assumptions, load_source
from .openclip import OPENCLIP_CONFIG, to_openclip, write_openclip
from .source import KINDS, Source, open_source
from .tokenizers import find_tokenizer, load_checkpoint_tokenizer

__all__ = [
    "KINDS",
    "OPENCLIP_CONFIG",
    "Source",
    "describe_assumptions",
    "download_checkpoint",
    "find_tokenizer",
    "load_source",
    "load_checkpoint_tokenizer",
    "open_source",
    "to_openclip",
    "write_openclip",
]
