"""Sums of one model's similarities of tokens and patches, taken batch by batch from the pass over the images."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from transformers import BatchEncoding, PreTrainedModel, ProcessorMixin

from evaluation_tier.analyses.relative_similarity import RelativeSimilarity
from evaluation_tier.analyses.sparsity_measures import STATISTICS, row_statistics
from evaluation_tier.analyses.words import WORD_CLASSES, token_weights
from evaluation_tier.models.contract import check_finite
from evaluation_tier.models.embedding import Embedders, Outputs
from evaluation_tier.models.images import check_any_readable
from evaluation_tier.models.processes import merge_entries, merge_rows
from modeling_tier.losses_tier import masked_entropy, token_patch_similarity
from modeling_tier.texts_tier import model_inputs, tokenize


class RankedSums(NamedTuple):
    """Rank-ordered similarities, summed over the pairs of some batches."""

    ranked: np.ndarray  # (classes + 2, 2, patches): sums of the cosines and of their squares
    counts: np.ndarray  # (classes + 2,): words of each class, punctuation, whole texts
    relative: RelativeSimilarity  # of whole texts
    num_cut: int  # texts that are cut off

    def merge(self, other: "RankedSums") -> "RankedSums":
        """The sums over the pairs of both."""
        ranked, counts = self.ranked + other.ranked, self.counts + other.counts
        return RankedSums(ranked, counts, self.relative.merge(other.relative), self.num_cut + other.num_cut)


class TokenPatchSums:
    """
    Sums of one model, of which any weighting of the images makes means: a [`Consumer`] of its pass.

    Args:
        model: of images and texts, that embeds tokens and patches.
        processor: the model's.
        texts: row of the data set to the text of its image, ascending.
        temperature: divides the cosines in the entropies.
        near_zero: a cosine of a smaller magnitude is near zero.

    Attributes:
        per_image: `"entropy_sums"` and `"entropy_counts"` (texts, 2) of tokens and of patches; `"sums"`
            (texts, classes, statistics) and `"counts"` (texts, classes) of words; NaN for an image that does not
            decode. The classes are `WORD_CLASSES` and punctuation.
        ranked: over all images.
    """

    patches = True
    embedders: Embedders = {}

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        texts: Mapping[int, str],
        temperature: float,
        near_zero: float,
    ):
        self.model: PreTrainedModel | None = model  # until the pass is over
        self.tokenizer, self.texts = processor.tokenizer, texts
        self.temperature, self.near_zero = temperature, near_zero
        self.rows: np.ndarray | None = np.array(list(texts))
        num_classes = len(WORD_CLASSES) + 1
        shapes: dict[str, tuple[int, ...]] = {"entropy_sums": (2,), "entropy_counts": (2,), "counts": (num_classes,)}
        shapes["sums"] = (num_classes, len(STATISTICS))
        self.per_image = {name: np.full((len(texts), *shape), np.nan) for name, shape in shapes.items()}
        self.batches: dict[int, RankedSums] = {}  # by their first row, since the order of a sum decides its rounding

    def add(self, rows: np.ndarray, outputs: Outputs) -> None:
        wanted = np.isin(rows, self.rows)
        if not wanted.any():
            return
        rows, patch_embeds = rows[wanted], outputs["patches"]
        if not wanted.all():
            patch_embeds = patch_embeds[torch.from_numpy(wanted).to(patch_embeds.device)]
        texts = [self.texts[row] for row in rows.tolist()]
        inputs = tokenize(self.model, self.tokenizer, texts)
        weights = token_weights(inputs, texts).to(patch_embeds.device)  # (batch, classes, tokens)
        num_cut = sum(bool(encoding.overflowing) for encoding in inputs.encodings)
        token_embeds, text_embeds = embed_tokens(self.model, inputs)
        similarity = token_patch_similarity(token_embeds, patch_embeds)  # (batch, tokens, patches)

        for name, values in self.sum_words(similarity, weights).items():
            self.per_image[name][np.searchsorted(self.rows, rows)] = values.cpu().numpy()
        descending = similarity.sort(dim=-1, descending=True).values
        whole = token_patch_similarity(text_embeds.unsqueeze(1), patch_embeds).sort(dim=-1, descending=True).values
        moments = [
            torch.cat([torch.einsum("bct,btp->cp", weights, descending**power), (whole**power).sum(0)])
            for power in (1, 2)
        ]
        relative = RelativeSimilarity()
        relative.add(whole.squeeze(1))
        counts = np.append(weights.sum((0, 2)).cpu().numpy(), len(rows)).astype(np.float64)
        self.batches[int(rows[0])] = RankedSums(
            torch.stack(moments, dim=1).double().cpu().numpy(), counts, relative, num_cut
        )

    def sum_words(self, similarity: torch.Tensor, weights: torch.Tensor) -> dict[str, torch.Tensor]:
        """The entries of `per_image` for a batch, from cosines (batch, tokens, patches) and `token_weights`."""
        counted = weights.sum(1) > 0  # (batch, tokens)
        statistics = row_statistics(similarity, self.temperature, self.near_zero)  # (batch, tokens, statistics)
        per_patch = masked_entropy(similarity / self.temperature, counted.unsqueeze(2), dim=1)  # (batch, patches)
        per_patch = per_patch * counted.any(1, keepdim=True)
        num_tokens = counted.sum(1)
        return {
            "entropy_sums": torch.stack([(statistics[..., 0] * counted).sum(1), per_patch.sum(1)], dim=1),
            "entropy_counts": torch.stack([num_tokens, (num_tokens > 0) * per_patch.shape[1]], dim=1),
            "sums": torch.einsum("bct,bts->bcs", weights, statistics),
            "counts": weights.sum(2),
        }

    def finish(self, own: np.ndarray) -> None:
        self.model = None
        places = np.searchsorted(self.rows, own[np.isin(own, self.rows)])
        self.per_image = {name: merge_rows(values, places) for name, values in self.per_image.items()}
        check_any_readable(~np.isnan(self.per_image["counts"]).any(axis=1), "report")
        first, *others = merge_entries(self.batches).values()
        self.batches = {}
        self.ranked = first
        for batch in others:
            self.ranked = self.ranked.merge(batch)


def embed_tokens(model: PreTrainedModel, inputs: BatchEncoding) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (batch, tokens, dim) and texts (batch, dim), L2-normalised float32."""
    text = model.get_text_features(**model_inputs(inputs, model.device))
    project = getattr(model, "project_tokens", None) or model.text_projection  # the latter is CLIP's own
    tokens = nn.functional.normalize(check_finite(project(text.last_hidden_state)), dim=-1)
    return tokens, nn.functional.normalize(check_finite(text.pooler_output), dim=-1)
