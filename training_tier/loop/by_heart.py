"""A warning when a model learns the training reports by heart: it tells them apart, and new ones hardly."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from modeling_tier.global_batch_tier import separate_batches
from training_tier.data.pairs import PairDataset

logger = logging.get_logger(__name__)

SAMPLE = 512  # training images at most, to keep it cheap

LEAST_GAIN = 0.5  # nats below chance on the training images, before which there is nothing to say

CARRIED_OVER = 0.5  # of this gain, the least share on the evaluated images that is not warned of


class ByHeart(TrainerCallback):
    """
    Warns once, when less than half of what the contrastive loss has gained over chance on training images is there on
    the evaluated ones. Both losses are measured alike: as many images, in batches of one size and of neighbouring
    records, one whole text each, without augmentation and dropout. (The loss that a training logs is not comparable.)
    The evaluated loss comes from the evaluation. The other one costs a forward pass of at most 512 images after each
    evaluation, until the warning.
    """

    def __init__(self) -> None:
        self.warned = False

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        metrics: Mapping[str, float] | None = None,
        train_dataloader: DataLoader | None = None,
        eval_dataloader: DataLoader | None = None,
        **kwargs: Any,
    ) -> None:
        evaluated = (metrics or {}).get("eval_contrastive_loss")
        if self.warned or evaluated is None or train_dataloader is None or eval_dataloader is None:
            return
        evaluation, size = eval_dataloader.dataset, args.eval_batch_size
        if len(evaluation) < size:  # not one whole batch
            return
        trained = as_evaluated(train_dataloader.dataset, evaluation)
        batches = spread_batches(len(trained), size, min(len(evaluation), SAMPLE) // size)
        if not batches:
            return
        on_training = mean_contrastive_loss(model, trained, batches, eval_dataloader.collate_fn, args)
        chance = math.log(size)
        if not learns_by_heart(on_training, evaluated, chance):
            return
        self.warned = True
        logger.warning(
            f"The model is learning the training reports by heart: the contrastive loss is {on_training:.2f} on "
            f"training images and {evaluated:.2f} on the evaluated ones, measured alike (chance: {chance:.2f}). Train "
            "fewer epochs (--early_stopping_patience 3), freeze a tower (--freeze_image_tower true), or vary the data "
            "(--augmentation standard, --sentences_per_image 3)."
        )


def learns_by_heart(on_training: float, evaluated: float, chance: float) -> bool:
    """Whether the gain over chance, in nats, is there on the training images and mostly not on the others."""
    gain = chance - on_training
    return gain > LEAST_GAIN and chance - evaluated < CARRIED_OVER * gain


def as_evaluated(trained: PairDataset, evaluation: PairDataset) -> PairDataset:
    """The training images with the texts, and without the augmentation, as an evaluation reads them."""
    dataset = copy.copy(trained)
    dataset.options, dataset.groups = evaluation.options, None
    return dataset


def spread_batches(count: int, size: int, number: int) -> list[range]:
    """At most so many whole batches of neighbouring records, evenly spread over `count` records."""
    number = min(number, count // size)
    return [range(start := i * count // number, start + size) for i in range(number)]


@torch.no_grad()
def mean_contrastive_loss(
    model: PreTrainedModel,
    dataset: PairDataset,
    batches: Sequence[range],
    collate: Any,
    args: TrainingArguments,
) -> float:
    """Over these batches, which the processes share; NaN if no image decodes. Every process has to call this."""
    sums = torch.zeros(2, device=args.device)
    was_training = model.training
    model.eval()
    for batch in batches[args.process_index :: args.world_size]:
        inputs = collate([dataset[i] for i in batch])
        pairs = len(inputs["indices"])
        if not pairs:  # no image decodes
            continue
        inputs = {
            name: value.to(args.device) if torch.is_tensor(value) else value
            for name, value in inputs.items()
            if name not in ("image_ids", "indices", "unreadable")
        }
        with separate_batches():
            loss = model(**inputs).contrastive_loss
        sums += torch.stack([loss.detach().float() * pairs, loss.new_tensor(float(pairs), dtype=torch.float)])
    model.train(was_training)
    if args.world_size > 1:
        dist.all_reduce(sums)
    return (sums[0] / sums[1]).item()
