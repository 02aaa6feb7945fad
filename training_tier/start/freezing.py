"""Towers and layers that are not trained."""

from transformers import PreTrainedModel

from modeling_tier import TierSiglipModel
from modeling_tier.towers_tier import freeze_layers
from training_tier.options.compatibility import refuse, rules_on_frozen_random_weights
from training_tier.options.model import ModelArguments
from training_tier.options.task import TaskArguments


def freeze_towers(model: PreTrainedModel, task: TaskArguments, arguments: ModelArguments) -> None:
    """
    Freezes the parts of the towers that the options name. Their projection heads are still trained. The batch norms of
    a frozen part keep their statistics too.

    Raises:
        `ValueError`: the weights are random, or a tower has fewer layers or does not list them.
    """
    options = {
        "freeze_image_tower": task.freeze_image_tower,
        "freeze_text_tower": task.freeze_text_tower,
        "frozen_vision_layers": arguments.frozen_vision_layers,
        "frozen_text_layers": arguments.frozen_text_layers,
    }
    refuse(rules_on_frozen_random_weights(arguments, options))
    for tower, whole, layers in (
        (model.vision_model, task.freeze_image_tower, arguments.frozen_vision_layers),
        (model.text_model, task.freeze_text_tower, arguments.frozen_text_layers),
    ):
        if whole:
            tower.requires_grad_(False)
            if isinstance(model, TierSiglipModel):  # its projections are part of the towers
                tower.head.requires_grad_(True)
        elif layers:
            freeze_layers(tower, layers)
