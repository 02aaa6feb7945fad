"""What happens at fixed points of a training."""

import math

from transformers import TrainerCallback

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
