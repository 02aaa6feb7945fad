"""Which radiographs and reports are used, and how."""

from dataclasses import dataclass, field

from processing_tier.records.labels import parse_label_values
from processing_tier.records.schema import TEXT_SOURCES, VIEW_CHOICES
from processing_tier.records.table_options import TableOptions, parse_columns
from processing_tier.reports.deidentification import DEIDENTIFIED_MODES
from training_tier.data.augmentation import AUGMENTATIONS
from training_tier.data.streaming import SHUFFLE_BUFFER
from training_tier.options.checks import check_choice, check_ranges


@dataclass
class DataArguments:
    """Parameters that say which radiographs and reports are used, and how."""

    data: str = field(
        default="phantom",
        metadata={
            "help": '"phantom" (synthetic radiographs made on the spot; "phantom:num_images=500,seed=1"), an image '
            "folder with <split>/metadata.csv, a table (.csv, .tsv, .xlsx, .jsonl, .parquet), NAME:FOLDER "
            "for an archive as its owner ships it, what tier-prepare wrote, or a data set on the Hub (owner/name)."
        },
    )
    columns: list[str] | None = field(
        default=None,
        metadata={"help": "A table's own column names, NAME=COLUMN each: image=Path impression=Text."},
    )
    image_root: str | None = field(default=None, metadata={"help": "Folder of the images of a table."})
    sheet: str | None = field(default=None, metadata={"help": "Sheet of an Excel table that has several."})
    label_values: list[str] | None = field(
        default=None,
        metadata={
            "help": "Words that a table has for findings, WORD=LABEL each, with 1 (present), 0 (absent), -1 "
            "(uncertain) or nothing (not stated): yes=1 no=0 unknown=."
        },
    )
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split: str | None = field(
        default=None,
        metadata={
            "help": "Split whose AUROC (zero-shot, or the classifier's) chooses the checkpoint. Without it, "
            "eval_fraction of the training patients are held out for that, so that no other split is touched."
        },
    )
    eval_fraction: float = field(
        default=0.1, metadata={"help": "Share of the training patients held out where eval_split is not given."}
    )
    text: str = field(
        default="impression",
        metadata={"help": f"Text of a report: {', '.join(TEXT_SOURCES)} (impression, or findings where it is empty)."},
    )
    deidentified: str = field(
        default="keep",
        metadata={
            "help": "Marks of de-identification (___, XXXX, [**...**]) in the text: keep, remove, or replace (___ for "
            "each). --sample_sentences always removes them."
        },
    )
    sample_sentences: bool = field(
        default=False,
        metadata={
            "help": "In training, draw in each epoch the impression, the findings or both, in shuffled sentences, "
            "instead of the text that --text names."
        },
    )
    avoid_duplicates: bool = field(
        default=False,
        metadata={
            "help": "Make the training batches so that no two of their reports say the same, as far as that can be: "
            "they would be negatives of one another. With --sample_sentences the impressions are compared (or the "
            "findings where there is none). Not with --streaming."
        },
    )
    soft_targets: bool = field(
        default=False,
        metadata={
            "help": "Pairs of a batch whose reports say the same (compared as by --avoid_duplicates) are no negatives "
            "of one another: each is to be matched with all of them alike."
        },
    )
    augmentation: str = field(
        default="standard",
        metadata={
            "help": "In training, vary position, size, rotation and exposure of each image: standard, tier (the "
            "paper's, with crops of at least 0.6 of the area), or none (CheXzero's). Never a mirror image."
        },
    )
    image_views: int = field(
        default=1,
        metadata={
            "help": "In training, vary each image so many times. The loss is the mean over all views with the texts "
            "and over the views with one another (TIER's code; its default is 1 too). Each view costs the memory and "
            "time of an image."
        },
    )
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read the training images as they come from the shards of --data (written by tier-prepare; a "
            "folder or a name on the Hub), without a copy in a cache. The records are the same, in another order."
        },
    )
    image_cache: str | None = field(
        default=None,
        metadata={
            "help": "Folder in which the decoded grey training images are kept, for this run and all later ones; the "
            "pixels are the same. Not with --streaming."
        },
    )
    shuffle_buffer: int | None = field(
        default=None,
        metadata={
            "help": f"With --streaming: encoded images that each data-loader worker holds to shuffle "
            f"({SHUFFLE_BUFFER} where not given)."
        },
    )
    views: str = field(default="frontal", metadata={"help": f"Views to use: {', '.join(VIEW_CHOICES)}."})
    max_train_images: int | None = field(default=None, metadata={"help": "Use only this many training images."})
    findings: list[str] | None = field(
        default=None,
        metadata={"help": "Findings to score and to classify; by default all finding columns with enough positives."},
    )
    prompts: str = field(
        default="report", metadata={"help": "Prompts of the zero-shot AUROC (or head): a name or YAML file."}
    )
    min_positives: int = field(
        default=5,
        metadata={
            "help": "Positives a finding needs in the evaluation images to enter the mean AUROC; for a classifier "
            "also the positives and the negatives it needs in training."
        },
    )

    def __post_init__(self):
        check_choice("text", self.text, TEXT_SOURCES)
        check_choice("deidentified", self.deidentified, DEIDENTIFIED_MODES)
        check_choice("augmentation", self.augmentation, AUGMENTATIONS)
        if self.image_views < 1 or self.image_views > 1 and self.augmentation == "none":
            raise ValueError(
                f"image_views={self.image_views} must be at least 1, and several need an augmentation that makes them "
                "differ; use 1, or another --augmentation."
            )
        check_choice("views", self.views, VIEW_CHOICES)
        check_ranges(self)
        if self.findings is not None and (not self.findings or not all(name.strip() for name in self.findings)):
            raise ValueError(f"findings={self.findings} names nothing; leave it out, or write names.")
        if self.findings is not None and len(set(self.findings)) < len(self.findings):
            raise ValueError(f"findings={self.findings} names one twice; name each once.")
        if self.sample_sentences and self.deidentified not in ("keep", "remove"):
            raise ValueError(
                f"deidentified={self.deidentified!r} has no effect with sample_sentences, which removes the marks; "
                "leave it out."
            )
        if self.streaming and self.avoid_duplicates:
            raise ValueError(
                "avoid_duplicates orders the images by their texts, and streaming by where they lie; leave one of "
                "them out (--soft_targets goes with both)."
            )
        if self.streaming and self.eval_split is None:
            raise ValueError("Streaming cannot hold out patients: pass --eval_split.")
        if self.streaming and self.image_cache is not None:
            raise ValueError(
                "image_cache keeps a copy of the images, and streaming is for doing without one; leave one of them "
                "out."
            )
        for name in ("columns", "image_root", "sheet", "label_values"):
            if self.streaming and getattr(self, name) is not None:
                raise ValueError(f"{name} has no effect with streaming, which reads prepared data; leave it out.")
        if self.shuffle_buffer is not None and not self.streaming:
            raise ValueError(f"shuffle_buffer={self.shuffle_buffer} has no effect without --streaming; leave it out.")
        self.table_options()  # raises for a value of another form

    def table_options(self) -> TableOptions:
        """How the readers read a table."""
        columns = parse_columns(self.columns)
        return TableOptions(columns, self.image_root, self.sheet, parse_label_values(self.label_values))
