"""Learning rates of parts of a model, and parts that are not trained at all."""

import math

import torch
from torch import nn
from transformers import PreTrainedModel

from modeling_tier.modeling_dual_tier import freeze_layers, layer_depths

from .arguments import ModelArguments, TaskArguments
from .presets import PRESETS


def learning_rate_scales(
    model: PreTrainedModel, vision_lr_scale: float = 1.0, text_lr_scale: float = 1.0, layer_decay: float = 1.0
) -> dict[nn.Parameter, float]:
    """
    The factor of the learning rate of each parameter: of a tower, its scale times `layer_decay` to the power of how
    many layers lie above (Clark et al. 2020, ELECTRA; Bao et al. 2022, BEiT): 1 for the last layer, and for what comes
    before the first layer one more than for the layer. 1.0 of what lies outside of the towers (projection heads,
    `logit_scale`, a classifier's head).

    Args:
        model ([`PreTrainedModel`]): with a `vision_model` and, unless it is a classifier, a `text_model`.
        vision_lr_scale, text_lr_scale (`float`, *optional*, default to 1.0): above 0.
        layer_decay (`float`, *optional*, defaults to 1.0): in (0, 1].

    Raises:
        `ValueError`: a tower has no list of its layers.
    """
    scales = dict.fromkeys(model.parameters(), 1.0)
    for name, scale in (("vision_model", vision_lr_scale), ("text_model", text_lr_scale)):
        tower = getattr(model, name, None)
        if tower is None:
            continue
        if layer_decay == 1.0:
            scales |= dict.fromkeys(tower.parameters(), scale)
            continue
        depths = layer_depths(tower)
        top = 1 + max(depth for depth in depths.values() if depth < math.inf)
        scales |= {parameter: scale * layer_decay ** (top - min(depth, top)) for parameter, depth in depths.items()}
    return scales


def scale_learning_rates(optimizer: torch.optim.Optimizer, scales: dict[nn.Parameter, float]) -> None:
    """
    Parts the groups of a new optimizer so that each has parameters of one learning rate: its own times their factor.
    Groups of the factor 1 come first, since a [`Trainer`] logs the learning rate of the first.
    """
    parted: dict[tuple[int, float], dict] = {}
    for number, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            scale = scales[parameter]
            options = {**group, "params": [], "lr": group["lr"] * scale}
            parted.setdefault((number, scale), options)["params"].append(parameter)
    optimizer.param_groups.clear()
    for _, group in sorted(parted.items(), key=lambda item: (item[0][1] != 1.0, item[0])):
        optimizer.add_param_group(group)


def freeze_towers(model: PreTrainedModel, task: TaskArguments, arguments: ModelArguments) -> None:
    """
    Leaves the parts of the towers that the options name as they are; their projection heads are trained all the same.
    The batch norms of a frozen part keep their statistics too.

    Raises:
        `ValueError`: the weights are random, or a tower has fewer layers or no list of them.
    """
    options = {
        "freeze_image_tower": task.freeze_image_tower,
        "freeze_text_tower": task.freeze_text_tower,
        "frozen_vision_layers": arguments.frozen_vision_layers,
        "frozen_text_layers": arguments.frozen_text_layers,
    }
    given = [name for name, value in options.items() if value]
    if given and arguments.vision_model is None and arguments.model in PRESETS:
        raise ValueError(
            f"{given[0]}={options[given[0]]} would keep the random weights of {arguments.model!r} as they are; it is "
            "for pretrained ones."
        )
    for tower, whole, layers in (
        (model.vision_model, task.freeze_image_tower, arguments.frozen_vision_layers),
        (model.text_model, task.freeze_text_tower, arguments.frozen_text_layers),
    ):
        if whole:
            tower.requires_grad_(False)
        elif layers:
            freeze_layers(tower, layers)
