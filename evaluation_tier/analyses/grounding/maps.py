"""The maps that grounding measures, on the model's grid of patches."""

import itertools
from collections.abc import Mapping, Sequence

import datasets
import numpy as np
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel, ProcessorMixin

from evaluation_tier.analyses.grounding.regions import Case
from evaluation_tier.models.embedding import check_finite, embed_prompts, read_batches
from evaluation_tier.models.loading import is_classifier
from modeling_tier.maps_tier import similarity_map
from processing_tier.prompts.loader import Prompts

MAPS = ("positive", "difference", "above_average")

BASELINES = ("average_positive", "average", "prior", "centre")

COSINES = (*MAPS, *BASELINES[:2])  # thresholds of cosines say nothing of the others

REFERENCE_IMAGES = 100  # whose average map is taken; more change it little


def check_gives_maps(model: PreTrainedModel) -> None:
    """ValueError for a model without similarity maps."""
    if is_classifier(model) or not hasattr(model, "get_patch_map"):
        raise ValueError(
            f"A {type(model).__name__} gives no similarity maps of sentences: grounding needs a TIER model "
            "(TierCLIPModel or TierDualEncoderModel)."
        )


def compute_grids(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    dataset: datasets.Dataset,
    cases: Sequence[Case],
    prompts: Mapping[str, Prompts],
    batch_size: int = 32,
) -> tuple[dict[Case, np.ndarray], int]:
    """The maps of each case on the model's own grid of patches; every image goes through the model once.

    - `positive`: the patch's cosine to the positive sentences (averaged and normalised, as `embed_prompts` does), or
      to the case's phrase; see `similarity_map`.
    - `difference`: minus its cosine to the negative sentences of the finding; what the pipeline draws.
    - `above_average`: the difference minus that of the average image; what the figures of `plots.py` draw.
    - `average_positive`, `average`: positive and difference of the average image.

    The average image is that of up to 100 images of the data set, evenly spaced, whatever their labels. Where an
    evaluated image is one of them, its own map is part of the average that is taken from it.

    Args:
        dataset: with the column `image`.
        cases: as `read_cases` gives them.
        prompts: of each finding.

    Returns:
        (5, rows, columns) float32 for each case whose image decodes, in the order of `MAPS` and the two averages; and
        the number of images that the average was taken over.

    Raises:
        ValueError: for a model without maps, and as `read_batches`.
    """
    check_gives_maps(model)
    texts = {
        (case.finding, case.phrase): Prompts([case.phrase], prompts[case.finding].negative)
        if case.phrase
        else prompts[case.finding]
        for case in cases
    }
    place = {key: i for i, key in enumerate(texts)}
    embeds = np.stack(embed_prompts(model, processor, texts))  # (2, texts, dim)
    embeds = torch.from_numpy(embeds).to(model.device)
    cases_of = {row: list(group) for row, group in itertools.groupby(cases, key=lambda case: case.row)}
    reference = np.linspace(0, len(dataset) - 1, min(len(dataset), REFERENCE_IMAGES)).round().astype(int)
    rows = np.union1d(reference, np.array(list(cases_of), dtype=int))
    is_reference = np.isin(rows, reference)

    cosines, total, num_reference = {}, 0, 0
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        part, num_images = dataset.select(rows), len(dataset)
        for indices, pixels in read_batches(model, processor, part, batch_size, "mapping images", num_images):
            patch_maps = check_finite(model.get_patch_map(pixels))  # (images, rows, columns, dim)
            in_average = torch.from_numpy(is_reference[indices]).to(patch_maps.device)
            total = total + F.normalize(patch_maps[in_average], dim=-1).double().sum(dim=0)
            num_reference += int(in_average.sum())
            for row, patch_map in zip(rows[indices].tolist(), patch_maps, strict=True):
                asked = cases_of.get(row, [])
                if asked:
                    those = embeds[:, [place[case.finding, case.phrase] for case in asked]]
                    grids = similarity_map(those, patch_map[None])[0].transpose(0, 1).cpu().numpy()
                    cosines.update(zip(asked, grids, strict=True))
        average = torch.einsum("sfd,rcd->fsrc", embeds.double(), total / max(num_reference, 1)).float().cpu().numpy()
    model.train(was_training)

    grids = {}
    for case, (positive, negative) in cosines.items():
        average_positive, average_negative = average[place[case.finding, case.phrase]]
        usual = average_positive - average_negative
        grids[case] = np.stack([positive, positive - negative, positive - negative - usual, average_positive, usual])
    return grids, num_reference
