"""
Changes to the model or the data at fixed points of a training.

Callbacks that save, stop or resume are in the modules of these names; `throughput.py` measures.
"""

import math
from collections.abc import Mapping
from typing import Any

from torch.utils.data import DataLoader
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from modeling_tier.base_tier import TierModelMixin
from training_tier.data.feature_cache import hash_tower

MAX_LOGIT_SCALE = math.log(100)  # Radford et al. 2021, section 2.5


class LogitScaleClamp(TrainerCallback):
    """Clamps the factor of the cosines at 100 after each step; CLIP's training is unstable above that."""

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        **kwargs: Any,
    ) -> None:
        model.logit_scale.data.clamp_(max=MAX_LOGIT_SCALE)


class EpochSetter(TrainerCallback):
    """Sets the epoch of the data set, also with several processes, where accelerate does not."""

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: DataLoader | None = None,
        **kwargs: Any,
    ) -> None:
        # the tolerance: in a resumed run the epoch is a sum of fractions
        train_dataloader.dataset.set_epoch(int((state.epoch or 0) + 1e-6))


class LogEachEpoch(TrainerCallback):
    """
    Logs the loss at the end of an epoch that `logging_steps` did not log, so that each training has a curve, however
    short it is.
    """

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        start = round(state.epoch or 0) - 1  # by epochs, which a run that was resumed within one shares
        logged = any("loss" in entry and entry["epoch"] > start + 1e-6 for entry in state.log_history)
        if not logged and args.logging_strategy != IntervalStrategy.NO:
            control.should_log = True


class FrozenTowers(TrainerCallback):
    """
    Refuses a training that starts with other towers than those whose outputs it reads, such as a resumed one whose
    checkpoint has another tower.

    Args:
        hashes (`Mapping[str, str]`): see [`cache_features`].
    """

    def __init__(self, hashes: Mapping[str, str]):
        self.hashes = hashes

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        **kwargs: Any,
    ) -> None:
        for name, expected in self.hashes.items():
            if hash_tower(model, name) != expected:
                raise ValueError(
                    f"The {name} of the checkpoint is not the one whose features are cached: start from the same "
                    "--model as the run that resumes, or leave cache_features out."
                )


class EntropyWarmup(TrainerCallback):
    """
    Raises the weights of the entropies linearly, from 0 in the first step to those of the configuration.

    Args:
        steps (`float`): length of the warm-up in steps; below 1, a share of all steps.
    """

    def __init__(self, steps: float):
        self.steps = steps

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        **kwargs: Any,
    ) -> None:
        steps = self.steps if self.steps >= 1 else math.ceil(self.steps * state.max_steps)
        for module in model.modules():
            if isinstance(module, TierModelMixin):
                module.entropy_scale = min(1.0, state.global_step / steps)
