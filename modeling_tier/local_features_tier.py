"""The local features of matched pairs, from which the entropies are computed."""

from typing import NamedTuple

import torch


class LocalFeatures(NamedTuple):
    """The texts, tokens and patches of matched pairs, projected; tokens and patches are not normalised."""

    texts: torch.Tensor  # (texts, dim), L2-normalised
    tokens: torch.Tensor  # (texts, tokens, dim)
    patches: torch.Tensor  # (images, patches, dim)
    token_mask: torch.Tensor  # (texts, tokens), bool: the tokens that the entropies count

    def for_views(self, image_views: int) -> "LocalFeatures":
        """With the texts repeated: one for each view of an image."""
        if image_views == 1:
            return self
        texts, tokens, mask = self.texts, self.tokens, self.token_mask
        return LocalFeatures(
            texts.repeat(image_views, 1), tokens.repeat(image_views, 1, 1), self.patches, mask.repeat(image_views, 1)
        )
