"""The local features of matched pairs, from which the entropies are computed."""

from typing import NamedTuple

import torch

from .hard_negatives_tier import HardNegatives


class LocalFeatures(NamedTuple):
    """The texts, tokens and patches of matched pairs, projected; tokens and patches are not normalised."""

    texts: torch.Tensor  # (texts, dim), L2-normalised
    tokens: torch.Tensor  # (texts, tokens, dim)
    patches: torch.Tensor  # (images, patches, dim)
    token_mask: torch.Tensor  # (texts, tokens), bool: the tokens that the entropies count
    negative_mask: torch.Tensor | None = None  # (images,), see `split_negatives`

    def split_negatives(self) -> tuple["LocalFeatures", HardNegatives | None]:
        """
        Without the hard negatives, and these. With a `negative_mask`, the last texts are hard negatives, one for each
        image in their order; the mask is False where an image has none, and a text stands in its place.
        """
        if self.negative_mask is None:
            return self, None
        count = len(self.texts) - len(self.negative_mask)
        kept = LocalFeatures(self.texts[:count], self.tokens[:count], self.patches, self.token_mask[:count])
        return kept, HardNegatives(self.texts[count:], self.negative_mask)

    def for_views(self, image_views: int) -> "LocalFeatures":
        """With the texts repeated: one for each view of an image."""
        if image_views == 1:
            return self
        texts, tokens, mask = self.texts, self.tokens, self.token_mask
        return LocalFeatures(
            texts.repeat(image_views, 1),
            tokens.repeat(image_views, 1, 1),
            self.patches,
            mask.repeat(image_views, 1),
            self.negative_mask,
        )
