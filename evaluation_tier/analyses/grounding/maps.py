"""The maps that grounding measures, on the model's grid of patches."""

import itertools
import math
from collections.abc import Mapping, Sequence

import datasets
import numpy as np
import torch
from transformers import PreTrainedModel, ProcessorMixin

from evaluation_tier.analyses.grounding.map_names import DIRECT, MAPS
from evaluation_tier.analyses.grounding.regions import Case
from evaluation_tier.models.adapters import UserModel
from evaluation_tier.models.contract import meets_contract
from evaluation_tier.models.embedding import Outputs, direct_embedders, embed_prompts, inference
from evaluation_tier.models.families import has_own_maps
from evaluation_tier.models.loading import is_classifier
from evaluation_tier.models.processes import merge_entries
from evaluation_tier.models.single_pass import Fed, asked_rows, feed
from modeling_tier.maps_tier import contribution_map, cosine_map, map_kinds
from processing_tier.prompts.loader import Prompts

REFERENCE_IMAGES = 100  # whose average map is taken; more change it little


def check_gives_maps(model: PreTrainedModel) -> None:
    """ValueError for a model without maps of findings; a classifier's logits must be sums over the patches."""
    if is_classifier(model):
        model.check_adds_up()
    elif isinstance(model, UserModel) and not has_own_maps(model):
        raise ValueError(
            f"The model of --adapter {model.name} does not say where its patches lie in the picture: give it "
            "embed_patches and map_geometry (docs/own_model.md)."
        )
    elif not has_own_maps(model):
        check_gives_maps_of_sentences(model)


def check_gives_maps_of_sentences(model: PreTrainedModel) -> None:
    """ValueError for a model without similarity maps."""
    if is_classifier(model) or not hasattr(model, "get_patch_map"):
        raise ValueError(
            f"{type(model).__name__} does not give similarity maps of sentences: use a TIER model "
            "(docs/models.md says which models tier-convert makes one of, docs/siglip.md what makes one of SigLIP)."
        )


class PatchMaps:
    """
    One model's maps of cases on its own grid of patches: a [`Consumer`] of its pass.

    - `positive`: the patch's cosine to the positive sentences (averaged and normalised, as `embed_prompts` does), or
      to the case's phrase; see `similarity_map`.
    - `difference`: minus its cosine to the negative sentences of the finding.
    - `above_average`: the difference minus that of the average image.
    - `average_positive`, `average`: positive and difference of the average image.
    - `positive_contribution` and so on: the same of contributions, for a model whose image embedding is the mean of
      its patches. The pipeline draws `difference_contribution`, the figures `above_average_contribution`.
    - `positive_direct_contribution` and so on: the same of what the patch adds to the image embedding through the
      class token, see `get_direct_map`.
    - `class_activation`, `above_average_class_activation`, `average_class_activation`: the only maps of a classifier,
      see `get_class_activation_map`; the weights of its head take the place of the difference of two sentences.

    The average image is that of up to 100 images of the data set, evenly spaced, regardless of their labels. If an
    evaluated image is one of them, the average that is subtracted includes its map.

    Args:
        model: with maps, see `check_gives_maps`. Its input is square, and so is its grid.
        processor: the model's.
        num_images: of the data set.
        cases: of the data set, as `read_cases` gives them.
        prompts: of each finding; a classifier needs none.

    Attributes:
        kinds: of maps that the model has, keys of `MAPS`.
        patch_centers: of the model, see `post_process_similarity_map`.
        sizes: row to (height, width) of the picture in the file, for each case whose image decodes.
        num_reference: images that the average was taken over.
    """

    patches = True

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        num_images: int,
        cases: Sequence[Case],
        prompts: Mapping[str, Prompts],
    ):
        check_gives_maps(model)
        self.patch_centers: tuple[float, float] = model.patch_centers
        self.cases = cases
        self.place = {key: i for i, key in enumerate(dict.fromkeys((case.finding, case.phrase) for case in cases))}
        if is_classifier(model):
            self.kinds: tuple[str, ...] = ("class_activation",)
            with inference(model):
                learnt = model.head_directions[[model.config.label2id[finding] for finding, _ in self.place]]
            self.embeds = torch.stack([learnt, torch.zeros_like(learnt)])  # without a negative side
        else:
            kinds = ("cosine",) if meets_contract(model) else map_kinds(model.config)
            self.kinds = tuple(kind for kind in MAPS if kind in kinds or kind == DIRECT and "direct" in kinds)
            texts = {
                (finding, phrase): Prompts([phrase], prompts[finding].negative) if phrase else prompts[finding]
                for finding, phrase in self.place
            }
            embeds = np.stack(embed_prompts(model, processor, texts))  # (2, texts, dim)
            self.embeds = torch.from_numpy(embeds).to(model.device)
        self.embedders = direct_embedders(model)
        self.cases_of = {row: list(group) for row, group in itertools.groupby(cases, key=lambda case: case.row)}
        self.reference = np.linspace(0, num_images - 1, min(num_images, REFERENCE_IMAGES)).round().astype(int)
        self.rows: np.ndarray | None = np.union1d(self.reference, np.array(list(self.cases_of), dtype=int))
        self.sides: dict[Case, np.ndarray] = {}  # (kinds, 2, rows, columns): positive and negative
        self.sizes: dict[int, tuple[int, int]] = {}
        self.total: np.ndarray | None = None  # of the reference images, (kinds, rows, columns, dim) float64
        self.num_reference = 0

    def add(self, rows: np.ndarray, outputs: Outputs) -> None:
        side = math.isqrt(outputs["patches"].shape[1])
        parts = []  # by kind the patches (images, rows, columns, dim) and their weights (images, rows, columns)
        for kind in self.kinds:
            patches = outputs["direct" if kind == DIRECT else "patches"].unflatten(1, (side, side))
            weighs = kind in ("contribution", "class_activation")
            weights = outputs["patch_weights"].unflatten(1, (side, side)) if weighs else torch.ones(patches.shape[:3])
            parts.append((patches, weights.to(patches.device)))
        is_reference = np.isin(rows, self.reference)
        if is_reference.any():
            members = torch.from_numpy(is_reference).to(self.embeds.device)
            chosen = [(weights[members].double(), patches[members].double()) for patches, weights in parts]
            total = torch.stack([torch.einsum("irc,ircd->rcd", *of_kind) for of_kind in chosen])
            self.total = total.cpu().numpy() + (0 if self.total is None else self.total)
            self.num_reference += int(is_reference.sum())
        for i, (row, size) in enumerate(zip(rows.tolist(), outputs["original_size"].tolist(), strict=True)):
            asked = self.cases_of.get(row, [])
            if asked:
                those = self.embeds[:, [self.place[case.finding, case.phrase] for case in asked]]
                maps = [contribution_map(cosine_map(those, patches[i : i + 1]), w[i : i + 1]) for patches, w in parts]
                sides = torch.cat(maps)  # (kinds, 2, cases, rows, columns)
                self.sides.update(zip(asked, sides.permute(2, 0, 1, 3, 4).cpu().numpy(), strict=True))
                self.sizes[row] = tuple(size)

    def finish(self, own: np.ndarray) -> None:
        self.embedders = {}  # they hold the model
        self.sides, self.sizes = merge_entries(self.sides), merge_entries(self.sizes)
        shares = merge_entries({} if self.total is None else {int(own[0]): (self.total, self.num_reference)})
        self.total = sum(total for total, _ in shares.values())
        self.num_reference = sum(number for _, number in shares.values())

    def grids(self) -> dict[Case, dict[str, np.ndarray]]:
        """By name in `MAPS` (rows, columns) float32, maps and averages, for each case whose image decodes."""
        mean = torch.as_tensor(self.total / max(self.num_reference, 1), device=self.embeds.device)
        average = torch.einsum("sfd,krcd->fksrc", self.embeds.double(), mean).float().cpu().numpy()
        grids: dict[Case, dict[str, np.ndarray]] = {}
        for case in self.cases:
            if case in self.sides:
                grids[case] = {}
                usual_sides = average[self.place[case.finding, case.phrase]]
                for kind, sides, usual in zip(self.kinds, self.sides[case], usual_sides, strict=True):
                    difference, usual_difference = sides[0] - sides[1], usual[0] - usual[1]
                    maps = (sides[0], difference, difference - usual_difference)[-len(MAPS[kind]) :]
                    averages = (usual[0], usual_difference, usual_difference)[-len(MAPS[kind]) :]
                    grids[case] |= dict(zip(MAPS[kind], maps, strict=True))
                    grids[case] |= dict(zip(MAPS[kind].values(), averages, strict=True))
        return grids


def compute_grids(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    dataset: datasets.Dataset,
    cases: Sequence[Case],
    prompts: Mapping[str, Prompts],
    batch_size: int = 32,
) -> tuple[dict[Case, dict[str, np.ndarray]], int]:
    """The maps of each case, by a separate pass in this process; the figures draw them.

    Args:
        dataset: with the column `image`.
        cases: see [`PatchMaps`]; so are `prompts`.

    Returns:
        [`PatchMaps.grids`], and the number of images that the average was taken over.

    Raises:
        ValueError: for a model without maps, and as `read_batches`.
    """
    maps = PatchMaps(model, processor, len(dataset), cases, prompts)
    feed([Fed(model, processor, [maps])], dataset, asked_rows(dataset, [maps]), batch_size)
    return maps.grids(), maps.num_reference
