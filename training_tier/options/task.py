"""What is learnt: contrastive training or classification."""

from dataclasses import dataclass, field

from training_tier.options.checks import check_choice, check_ranges

TASKS = ("contrastive", "classification")


@dataclass
class TaskArguments:
    """Parameters that say what is learnt, and those of `--task classification` alone."""

    task: str = field(
        default="contrastive",
        metadata={
            "help": '"contrastive": which report belongs to which image; "classification": the findings, from their '
            "columns, with the image tower of --model."
        },
    )
    freeze_image_tower: bool = field(
        default=False,
        metadata={
            "help": "Keep the image tower as it is. Classification: train the head alone (a linear probe); "
            "contrastive: the projection heads and the text tower (locked-image tuning)."
        },
    )
    freeze_text_tower: bool = field(
        default=False, metadata={"help": "Keep the text tower as it is, but for its projection head."}
    )
    head_from_prompts: bool = field(
        default=False,
        metadata={
            "help": "Classification: start the head as the zero-shot classifier that --prompts make of --model."
        },
    )
    label_fraction: float = field(
        default=1.0,
        metadata={
            "help": "Classification: share of the training patients whose labels are used, for example 0.01. Drawn by "
            "--seed; a larger share holds the smaller ones."
        },
    )

    def __post_init__(self):
        check_choice("task", self.task, TASKS)
        check_ranges(self)
        if self.task != "classification":
            for name in ("head_from_prompts", "label_fraction"):
                if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                    raise ValueError(f"{name} has no effect on the task {self.task!r}; add --task classification.")
