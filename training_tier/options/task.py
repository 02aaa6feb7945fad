"""Options that select the task: contrastive training or classification."""

from dataclasses import dataclass, field


@dataclass
class TaskArguments:
    """Options that select the task, and the options of `--task classification` alone."""

    task: str = field(
        default="contrastive",
        metadata={
            "help": "What to learn: contrastive (which report belongs to which image) or classification (findings). "
            "Classification reads the findings from their columns and trains a head on the image tower of --model."
        },
    )
    freeze_image_tower: bool = field(
        default=False,
        metadata={
            "help": "Keep the image tower unchanged. Classification then trains the head alone (a linear probe), and "
            "contrastive training the projection heads and the text tower (locked-image tuning)."
        },
    )
    freeze_text_tower: bool = field(
        default=False, metadata={"help": "Keep the text tower unchanged. Its projection head is still trained."}
    )
    head_from_prompts: bool = field(
        default=False,
        metadata={
            "help": "Classification: start the head as the zero-shot classifier. --prompts and the text tower of "
            "--model make it."
        },
    )
    label_fraction: float = field(
        default=1.0,
        metadata={
            "help": "Classification: share of the training patients whose labels are used. For example 0.01. --seed "
            "draws them, and a larger share contains the smaller ones."
        },
    )

    def __post_init__(self) -> None:
        from training_tier.options import checks, compatibility  # here, so that --help needs no torch

        checks.check_values(self)
        compatibility.check_task(self)
