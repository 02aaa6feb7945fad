"""The contract of an evaluated model: what an evaluation needs from a model of images and texts.

Models of transformers meet it through the wrapper of their family (`clip.py`, `siglip.py`), a user's own through
`adapters.py`; `families.py` chooses. A model that meets it itself stands in a pair (model, processor) without a
processor: `(model, None)`.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeGuard

import numpy as np
import torch
from PIL import Image

from processing_tier import TierImageProcessor

Pixels: TypeAlias = torch.Tensor | Mapping[str, torch.Tensor]  # of a batch; by name where a processor makes several

WINDOW = "window"  # the `decoding` of `read_radiograph`, by the name of its `grey_levels`

COSINE = "cosine"  # the similarity of all models without one of their own


class PatchEmbeds(NamedTuple):
    """Embeddings of images and of their patches from one pass through the model, L2-normalised float32."""

    images: torch.Tensor  # (batch, dim)
    patches: torch.Tensor  # (batch, patches, dim)
    weights: torch.Tensor | None = None  # (batch, patches): where the image is the mean of its patches, theirs in it


class EvaluatedModel(Protocol):
    """
    A model of images and texts, a `torch.nn.Module`.

    Two parts are optional, and an evaluation looks for them by their names. Whatever needs a part that a model lacks
    is refused with one sentence.

    - `embed_patches` ([`PatchModel`]): embeddings of patches in the space of the texts. Without it, the whole image is
      the only score level.
    - `map_processor` and `patch_centers` ([`MappedModel`]): where the patches lie in the picture, for maps.
    - `score` ([`ScoringModel`]): a similarity of its own in place of the cosine of image and text, from the embeddings
      that the other methods gave (`patches` is None without `embed_patches`). The attribute `similarity` names its
      unit, which is the same for all members of an ensemble.
    """

    @property
    def device(self) -> torch.device:
        """Where the model takes pixels."""

    @property
    def decoding(self) -> str:
        """Equal for models whose `read_image` gives the same image of every file."""

    @property
    def preprocessing(self) -> str:
        """Equal for models that also take the same pixels."""

    @property
    def identity(self) -> str | None:
        """Changes with whatever decides the embeddings; None where that is not known, which rules out the cache."""

    def read_image(self, image: object) -> Image.Image:
        """An undecoded image (bytes, a path, a dict of these) as an 8-bit grey image. ValueError if it is damaged."""

    def preprocess(self, image: Image.Image) -> Pixels:
        """The input of one image, as a batch of one. Called in several threads at once."""

    def embed_images(self, pixels: Pixels) -> torch.Tensor:
        """(batch, dim), L2-normalised float32."""

    def embed_texts(self, texts: Sequence[str], batch_size: int = 64) -> torch.Tensor:
        """(texts, dim), L2-normalised float32, in the space of the images."""


REQUIRED = (
    "device",
    "decoding",
    "preprocessing",
    "identity",
    "read_image",
    "preprocess",
    "embed_images",
    "embed_texts",
)


def meets_contract(model: Any) -> TypeGuard[EvaluatedModel]:
    """
    Whether a model has the parts of the contract itself, and not by the wrapper of its family.

    No part is computed: `isinstance` with a protocol asks for every property before Python 3.12, and `identity` may be
    a hash of all weights.
    """
    missing = object()
    return all(inspect.getattr_static(model, part, missing) is not missing for part in REQUIRED)


class PatchModel(EvaluatedModel, Protocol):
    """A model with the optional `embed_patches`."""

    def embed_patches(self, pixels: Pixels) -> PatchEmbeds:
        """Images and patches from one pass."""


class MappedModel(PatchModel, Protocol):
    """A model whose patches make a square grid that can be drawn over the picture in the file."""

    map_processor: TierImageProcessor  # of the model's geometry

    patch_centers: tuple[float, float]  # see `post_process_similarity_map`


class ScoringModel(EvaluatedModel, Protocol):
    """A model with the optional `score`."""

    similarity: str

    def score(self, images: torch.Tensor, patches: torch.Tensor | None, texts: torch.Tensor) -> torch.Tensor:
        """(batch, texts), of finite numbers in the order of 1."""


def normalize(features: torch.Tensor) -> np.ndarray:
    """Features of length 1, as numpy float32. ValueError when some are not finite."""
    return to_unit_length(features).cpu().numpy()


def to_unit_length(features: torch.Tensor) -> torch.Tensor:
    """Features of length 1 along the last axis, as float32. ValueError when some are not finite, or are zero."""
    features = features.float()
    return check_finite(features / features.norm(dim=-1, keepdim=True))


def check_finite(features: torch.Tensor) -> torch.Tensor:
    """The features as float32. ValueError when some are not finite."""
    features = features.float()
    if not torch.isfinite(features).all():
        raise ValueError(
            "The model's embeddings are zero or not finite: its weights are damaged or the training diverged."
        )
    return features
