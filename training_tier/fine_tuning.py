"""Short trainings of classifiers on few patients, for the learning curve of `tier-eval`."""

import argparse
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

import datasets
import numpy as np
from transformers import PrinterCallback

from evaluation_tier.models.adapters import AdapterName
from training_tier.loop.make_trainer import make_classification_trainer
from training_tier.loop.stopping import PREEMPTED, TrainingStopped
from training_tier.loop.time_left import TimeLeft
from training_tier.options.model import ModelArguments
from training_tier.options.parsing import Options, parse_options
from training_tier.run import complete_options
from training_tier.start.classifier import CLASSIFIERS
from training_tier.start.initialization import MODEL_CLASSES, read_stored_config

RECIPE = "finetune"

# Nothing is chosen on the evaluated images: the last step counts. Neither log nor checkpoint outlives the training.
FIXED = {
    "eval_strategy": "no",
    "eval_on_start": "false",
    "save_strategy": "no",
    "load_best_model_at_end": "false",
    "logging_strategy": "no",
    "report_to": "none",
    "disable_tqdm": "true",
    "min_positives": "1",
}


def make_fine_tuning(args: argparse.Namespace) -> "FineTuning | None":
    """What --fine_tuning_steps of `tier-eval` asks for. The evaluation does not know the training, so it gets this."""
    return None if args.fine_tuning_steps is None else FineTuning(args.fine_tuning_steps, args.device)


@dataclass(frozen=True)
class FineTuning:
    """
    Trains the image tower of a model with a new head, as `tier-train finetune` does, for a fixed number of steps.

    Args:
        steps (`int`): of 32 images each.
        device (`str`, *optional*): `"cpu"`, or a GPU; by default the first GPU if there is one.
    """

    steps: int
    device: str | None = None

    def check(self, model: str) -> None:
        """
        Raises:
            `ValueError`: a model whose image tower [`make_classification_trainer`] cannot train, several processes, or
                a GPU that is not the first one.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError("--fine_tuning_steps trains in one process: start the command without torchrun.")
        if self.device not in (None, "cpu", "cuda", "cuda:0", "mps"):
            raise ValueError(
                f"--fine_tuning_steps cannot train on the device {self.device!r}: choose 'cpu' or 'cuda', and select "
                "a GPU by the environment variable CUDA_VISIBLE_DEVICES."
            )
        if not isinstance(model, AdapterName):
            stored = read_stored_config(ModelArguments(model=path_of(model)))
            if MODEL_CLASSES[stored["model_type"]] in CLASSIFIERS:
                return
        raise ValueError(
            f"--fine_tuning_steps trains image towers of CLIP and TIER models, which {model} is not: leave it out."
        )

    def score(
        self, model: str, drawn: datasets.Dataset, findings: Sequence[str], tested: datasets.Dataset, seed: int
    ) -> np.ndarray:
        """
        Train a classifier, and score other images.

        Args:
            model (`str`): folder, or name on the Hub.
            drawn (`datasets.Dataset`): the images to learn from, with both classes of each finding.
            findings (`Sequence[str]`): to learn.
            tested (`datasets.Dataset`): the images to score.
            seed (`int`): of the order of the images.

        Returns:
            `np.ndarray` of shape `(tested, findings)`: the logits; NaN for an image that does not decode.

        Raises:
            `ValueError`: the loss is not finite, or more than 1 % of the images do not decode.
        """
        with tempfile.TemporaryDirectory() as folder:
            options = self.make_options(model, findings, seed, folder)
            complete_options(options)
            trainer = make_classification_trainer(options, drawn, tested, {})
            trainer.remove_callback(PrinterCallback)
            trainer.remove_callback(TimeLeft)
            try:
                trainer.train()
            except TrainingStopped as stop:
                if stop.exit_code == PREEMPTED:
                    raise SystemExit(PREEMPTED) from None
                raise ValueError(f"Fine-tuning on {len(drawn)} images: {stop}") from None
            if trainer.preemption.requested:  # in the last step, which the trainer does not heed
                raise SystemExit(PREEMPTED)
            return trainer.predict(trainer.eval_dataset).predictions

    def make_options(self, model: str, findings: Sequence[str], seed: int, folder: str) -> Options:
        """The options of `tier-train` for one training."""
        given = {
            **FIXED,
            "model": path_of(model),
            "max_steps": str(self.steps),
            "seed": str(seed),
            "output_dir": folder,
            "use_cpu": str(self.device == "cpu").lower(),
        }
        words = [word for name, value in given.items() for word in (f"--{name}", value)]
        return parse_options([RECIPE, *words, "--findings", *findings], "tier-train")


def path_of(model: str) -> str:
    """The name of a model for `tier-train`, which would take a folder `tiny` for the preset of this name."""
    return os.path.abspath(model) if os.path.isdir(model) else model
