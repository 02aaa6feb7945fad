"""What happens at fixed points of a training."""

import math
import shutil

from transformers import TrainerCallback

from modeling_tier.modeling_tier import TierModelMixin

from .checkpoints import list_checkpoints, rank_checkpoints

MAX_LOGIT_SCALE = math.log(100)  # Radford et al. 2021, section 2.5


class LogitScaleClamp(TrainerCallback):
    """Keeps the factor of the cosines at 100 or below after each step, without which CLIP's training is unstable."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        model.logit_scale.data.clamp_(max=MAX_LOGIT_SCALE)


class EpochSetter(TrainerCallback):
    """Tells the data set which epoch it is, also where accelerate does not (several processes)."""

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        # the tolerance: in a resumed run the epoch is a sum of fractions
        train_dataloader.dataset.set_epoch(int((state.epoch or 0) + 1e-6))


class TopCheckpoints(TrainerCallback):
    """
    Deletes, after each save, all checkpoints but the best ones and the latest, which resuming needs.

    Args:
        count (`int`): how many are kept for being the best by `metric_for_best_model`.
    """

    def __init__(self, count: int):
        self.count = count

    def on_save(self, args, state, control, **kwargs):
        if not args.should_save:  # another process does
            return
        checkpoints = list_checkpoints(args.output_dir)
        ranked = rank_checkpoints(checkpoints, state.log_history, args.metric_for_best_model, args.greater_is_better)
        kept = {step for step, _ in ranked[: self.count]} | {max(checkpoints, default=None)}
        for step in checkpoints.keys() - kept:
            shutil.rmtree(checkpoints[step], ignore_errors=True)


class EntropyWarmup(TrainerCallback):
    """
    Lets the weights of the two entropies grow linearly from 0, in the first step, to those of the configuration.

    Args:
        steps (`float`): after so many steps they are reached; below 1, after this share of all steps.
    """

    def __init__(self, steps: float):
        self.steps = steps

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        steps = self.steps if self.steps >= 1 else math.ceil(self.steps * state.max_steps)
        for module in model.modules():
            if isinstance(module, TierModelMixin):
                module.entropy_scale = min(1.0, state.global_step / steps)
