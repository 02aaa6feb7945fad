"""Options that say which radiographs and reports are used, and how."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from processing_tier.records.table_options import TableOptions


@dataclass
class DataArguments:
    """Options that say which radiographs and reports are used, and how."""

    data: str = field(
        default="phantom",
        metadata={
            "help": "Data: phantom, a table, an image folder, NAME:FOLDER for an archive, or owner/name on the Hub. "
            'The phantom is synthetic and made on the spot ("phantom:num_images=500,seed=1"). A table is .csv, .tsv, '
            ".xlsx, .jsonl or .parquet. An image folder holds <split>/metadata.csv. The output of tier-prepare works "
            "too. See docs/your_data.md."
        },
    )
    columns: list[str] | None = field(
        default=None,
        metadata={"help": "Names of a table's columns, NAME=COLUMN each. For example image=Path impression=Text."},
    )
    image_root: str | None = field(default=None, metadata={"help": "Folder of the images of a table."})
    sheet: str | None = field(default=None, metadata={"help": "Sheet of an Excel file with several sheets."})
    label_values: list[str] | None = field(
        default=None,
        metadata={
            "help": "Words that a table uses for labels, WORD=LABEL each. Labels are 1 (present), 0 (absent), -1 "
            "(uncertain) or nothing (not stated): yes=1 no=0 unknown=."
        },
    )
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split: str | None = field(
        default=None,
        metadata={
            "help": "Split whose AUROC selects the checkpoint. Without it, --eval_fraction of the training patients "
            "are held out, and no other split is touched. A classifier is selected by its own AUROC, any other model "
            "by the zero-shot AUROC."
        },
    )
    eval_fraction: float = field(
        default=0.1, metadata={"help": "Share of the training patients to hold out without --eval_split."}
    )
    text: str = field(
        default="impression",
        metadata={
            "help": "Text of a report: impression, findings, or both (the impression, or the findings where it is "
            "empty)."
        },
    )
    deidentified: str = field(
        default="keep",
        metadata={
            "help": "De-identification marks in the text (___, XXXX, [**...**]): keep, remove or replace. replace "
            "writes ___ for each. --sample_sentences and --sentences_per_image always remove them."
        },
    )
    sample_sentences: bool = field(
        default=False,
        metadata={
            "help": "Draw a new text in each epoch: impression, findings or both, with the sentences shuffled. It "
            "replaces --text in training."
        },
    )
    sentences_per_image: int = field(
        default=0,
        metadata={
            "help": "Sentences of the report that each image has as separate positives (0: one text per image). Each "
            "epoch draws this many from impression and findings; a shorter report repeats some. Equal sentences of a "
            "batch are never negatives of each other and count once in the loss. It replaces --text in training; an "
            "evaluation's loss still uses one text per image. For example 3."
        },
    )
    rare_sentences: float = field(
        default=0.0,
        metadata={
            "help": "How much --sentences_per_image prefers rare sentences (0: not). One that n training reports have "
            "is drawn with a weight of 1 / n to this power. For example 1: rare sentences say more about an image."
        },
    )
    avoid_duplicates: bool = field(
        default=False,
        metadata={
            "help": "Keep reports with the same meaning out of one batch, where possible. They would be negatives of "
            "each other. With --sample_sentences or --sentences_per_image, the impressions are compared, or the "
            "findings where the impression is empty. Does not work with --streaming."
        },
    )
    soft_targets: bool = field(
        default=False,
        metadata={
            "help": "Reports of a batch with the same meaning are positives of each other, not negatives. They are "
            "compared as by --avoid_duplicates, and share the target equally."
        },
    )
    augmentation: str = field(
        default="standard",
        metadata={
            "help": "Variation of the training images: standard, tier or none. standard varies position, size, "
            "rotation and exposure; tier is the paper's, with crops of at least 0.6 of the area; none is CheXzero's. "
            "Images are never mirrored."
        },
    )
    image_views: int = field(
        default=1,
        metadata={
            "help": "Augmented views of each training image. The loss is the mean over all views with the texts, and "
            "over the views with one another (as in TIER's code, whose default is 1 too). Each view costs the memory "
            "and time of an image."
        },
    )
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read training images from the shards of --data, without a copy on disk. tier-prepare writes the "
            "shards, in a folder or on the Hub. The records are the same, in another order."
        },
    )
    image_cache: str | None = field(
        default=None,
        metadata={
            "help": "Folder that keeps decoded training images for this run and later ones. The pixels are the same. "
            "Does not work with --streaming."
        },
    )
    cache_features: str | None = field(
        default=None,
        metadata={
            "help": "Folder that keeps the outputs of frozen towers for this run and later ones. A tower then runs "
            "once for each image or text and not in each epoch. Needs --freeze_image_tower true and --augmentation "
            "none; with --freeze_text_tower true, the outputs for texts are kept too. They are kept in float16. See "
            "docs/frozen.md."
        },
    )
    shuffle_buffer: int | None = field(
        default=None,
        metadata={"help": "With --streaming: images that each worker holds to shuffle (1000 by default)."},
    )
    views: str = field(default="frontal", metadata={"help": "Views to use: frontal or all."})
    max_train_images: int | None = field(default=None, metadata={"help": "Use only this many training images."})
    findings: list[str] | None = field(
        default=None,
        metadata={"help": "Findings to score and to classify. By default, every finding with enough positives."},
    )
    prompts: str = field(
        default="report", metadata={"help": "Prompts of the zero-shot AUROC (or head): a name or a YAML file."}
    )
    min_positives: int = field(
        default=5,
        metadata={
            "help": "Positives that a finding needs in the evaluation images to be scored. A classifier also needs "
            "this many positives and negatives in the training images."
        },
    )

    def __post_init__(self) -> None:
        from training_tier.options import checks, compatibility  # here, so that --help needs no torch

        checks.check_values(self)
        checks.check_finding_names(self.findings)
        compatibility.check_data(self)
        self.table_options()  # raises for a value of another form

    def table_options(self) -> "TableOptions":
        """How the readers read a table."""
        from processing_tier.records.labels import parse_label_values  # here, so that --help needs no torch
        from processing_tier.records.table_options import TableOptions, parse_columns

        columns = parse_columns(self.columns)
        return TableOptions(columns, self.image_root, self.sheet, parse_label_values(self.label_values))
