"""`train`, which is `tier-train` as a function."""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training_tier.run import TrainingResult


def train(recipe: str | os.PathLike | None = None, **options: Any) -> "TrainingResult":
    """
    Trains a model on radiographs and their reports, or a classifier of findings. It does what `tier-train` does, with
    the same options, checks and files, and raises where the command exits.

    ```python
    from tier_clip import train

    result = train("smoke", data="phantom", output_dir="runs/first", num_train_epochs=1)
    print(result.metric, result.best_metric, result.output_dir)
    ```

    The log has what the command prints; to see it: `logging.basicConfig(level=logging.INFO, format="%(message)s")`.

    Args:
        recipe (`str`, *optional*): a recipe that comes with the project (`"smoke"`, `"indiana"`), or a YAML file.
        options: the options of the command as keyword arguments, without the hyphens; they replace the recipe's.
            `tier-train --help` lists them. `columns` and `label_values` may be mappings.

    Returns:
        [`TrainingResult`]: the folder of the model, the best checkpoint and its metric, and the log.

    Raises:
        `ValueError`: an option is unknown (the message has the nearest name) or refused, or the data are.
        `TrainingStopped`: SIGTERM, a loss that is not finite, or a checkpoint that cannot be written.
    """
    # Imported here, so that `import tier_clip` stays quick
    from training_tier.options.parsing import command_words, make_options
    from training_tier.run import run

    return run(make_options(recipe, options), command_words(recipe, options))
