"""The records of a training, the records that select its checkpoint, and the source of their images."""

import logging

import datasets
import numpy as np

from processing_tier import TierImageProcessor
from processing_tier.readers import read_records
from processing_tier.records.schema import check_disjoint_patients, select_text, select_views
from processing_tier.reports.deidentification import clean_text
from training_tier.data.image_cache import CachedImages
from training_tier.data.pairs import SECTIONS, PairDataset
from training_tier.data.streaming import SHUFFLE_BUFFER, ShardedImages, read_shards
from training_tier.options.data import DataArguments
from training_tier.options.training import TierTrainingArguments, usable_cores

logger = logging.getLogger(__name__)


def hold_out(records: datasets.Dataset, fraction: float, seed: int) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Splits off the images of a share of the patients, drawn with `seed`. Both parts stay in order."""
    patient_ids = np.array(records["patient_id"])
    patients = np.unique(patient_ids)
    count = round(fraction * len(patients))
    if not 0 < count < len(patients):
        raise ValueError(f"{len(patients)} patients are too few to hold out a share of {fraction}; pass --eval_split.")
    held = np.isin(patient_ids, np.random.default_rng(seed).permutation(patients)[:count])
    return records.select(np.flatnonzero(~held)), records.select(np.flatnonzero(held))


def load_splits(
    arguments: DataArguments, seed: int, with_text: bool = True
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """
    The training records (by default only those with text), and the records whose AUROC selects the checkpoint. With
    streaming, the training records come without images, see [`read_shards`] and [`make_images`].

    Raises:
        `ValueError`: see the readers; or without text, with too few records, or with a patient in both splits.
    """

    def read(split: str, streaming: bool = False) -> datasets.Dataset:
        if streaming:
            records = read_shards(arguments.data, split)
        else:
            records = read_records(arguments.data, split, arguments.table_options())
        return select_views(records, arguments.views, split)

    train = read(arguments.train_split, arguments.streaming)
    if arguments.eval_split is not None:
        evaluation = read(arguments.eval_split)
    else:
        train, evaluation = hold_out(train, arguments.eval_fraction, seed)
    check_disjoint_patients(train=train, evaluation=evaluation)
    if not with_text:
        return train.select(range(len(train))[: arguments.max_train_images]), evaluation
    sections = zip(*(train[section][:] for section in SECTIONS), strict=True)
    source = "both" if arguments.sample_sentences or arguments.sentences_per_image else arguments.text
    texts = (select_text(dict(zip(SECTIONS, texts, strict=True)), source) for texts in sections)
    if arguments.deidentified == "remove":
        texts = (clean_text(text, "remove") for text in texts)
    kept = [i for i, text in enumerate(texts) if text]
    if not kept:
        raise ValueError(
            f"The training records do not have text in {arguments.text!r}; choose another --text, or name the column "
            "with --columns."
        )
    if len(kept) < len(train):
        left_out = len(train) - len(kept)
        logger.warning("%d of %d training records do not have text and are left out.", left_out, len(train))
    return train.select(kept[: arguments.max_train_images]), evaluation


def make_images(
    records: datasets.Dataset,
    image_processor: TierImageProcessor,
    arguments: DataArguments,
    training_arguments: TierTrainingArguments,
) -> ShardedImages | CachedImages | None:
    """
    The source of the training images: their shards with streaming, the cache with `image_cache`, and otherwise the
    records (`None`). One process per machine fills the cache while the others wait.
    """
    if arguments.streaming:
        return ShardedImages(records, arguments.shuffle_buffer or SHUFFLE_BUFFER, training_arguments.seed)
    if arguments.image_cache is None:
        return None
    with training_arguments.main_process_first(desc="filling the image cache"):
        return CachedImages(records, image_processor, arguments.image_cache, usable_cores() - 1)


def check_readable(dataset: PairDataset, count: int = 8) -> None:
    """Reads a few images first, so that a wrong folder or a missing decoder shows before the training."""
    pairs = [dataset[i] for i in range(min(count, len(dataset)))]
    errors = [pair["error"] for pair in pairs if "error" in pair]
    if len(errors) == len(pairs):
        raise ValueError(f"None of the first {len(pairs)} images decodes. The first one: {errors[0]}")
