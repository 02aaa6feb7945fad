"""Records to pairs of pixels and text: a new random version in each epoch, and yet reproducible."""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import datasets
import numpy as np
import torch
from PIL import Image

from processing_tier import TierImageProcessor
from processing_tier.records.schema import select_text
from processing_tier.reports.deidentification import clean_text
from processing_tier.reports.duplicates import duplicate_groups, text_hash
from processing_tier.reports.sentences import split_sentences
from training_tier.data.augmentation import augment, augment_tier
from training_tier.data.features import ImageFeatures
from training_tier.data.image_cache import CachedImages
from training_tier.data.streaming import ShardedImages

SECTIONS = ("impression", "findings")


@dataclass(frozen=True)
class PairOptions:
    """
    How a record becomes a pair.

    Args:
        text (`str`, *optional*, defaults to `"impression"`): see [`select_text`].
        deidentified (`str`, *optional*, defaults to `"keep"`): marks in that text, see [`clean_text`].
        sample_sentences (`bool`, *optional*, defaults to `False`): see [`sample_text`].
        sentences_per_image (`int`, *optional*, defaults to 0): instead of one `text`, each pair has this many `texts`
            and their `groups`, see [`draw_sentences`]. 0 for one text.
        rare_sentences (`float`, *optional*, defaults to 0.0): how much rarer sentences of the records are preferred
            in drawing `sentences_per_image`, see [`draw_sentences`].
        soft_targets (`bool`, *optional*, defaults to `False`):
            each pair also has a `group`, the same for texts that say the same, see [`duplicate_groups`].
        augmentation (`str`, *optional*, defaults to `"none"`): `"standard"`, see [`augment`], or `"tier"`, see
            [`augment_tier`].
        image_views (`int`, *optional*, defaults to 1): views of each image, augmented separately. With several,
            `pixel_values` has the shape (image_views, 1, height, width).
        seed (`int`, *optional*, defaults to 0): of the random choices.
    """

    text: str = "impression"
    deidentified: str = "keep"
    sample_sentences: bool = False
    sentences_per_image: int = 0
    rare_sentences: float = 0.0
    soft_targets: bool = False
    augmentation: str = "none"
    image_views: int = 1
    seed: int = 0


class PairDataset(torch.utils.data.Dataset):
    """
    One image and its text per record. `all_columns` are the unchanged records, with the columns of findings.

    Everything random depends only on (seed, epoch, index). So a pair is the same in every process, with any number of
    workers, and in a resumed run.

    Args:
        records (`datasets.Dataset`): in the schema of `processing_tier.records`.
        image_processor ([`TierImageProcessor`]): makes the pixels.
        options ([`PairOptions`], *optional*): how a record becomes a pair.
        images ([`ShardedImages`] or [`CachedImages`], *optional*): where to read the images instead of in the records.
    """

    def __init__(
        self,
        records: datasets.Dataset,
        image_processor: TierImageProcessor,
        options: PairOptions = PairOptions(),
        images: ShardedImages | CachedImages | None = None,
    ):
        self.all_columns = records
        self.records = records.select_columns([*(["image"] if images is None else []), "image_id", *SECTIONS])
        self.images = images
        self.features: ImageFeatures | None = None  # what a frozen image tower gives, in place of the pixels
        self.image_processor = image_processor
        self.options = options
        self.epoch = 0
        self.groups = duplicate_groups(self.texts()) if options.soft_targets else None
        self.sentence_counts = self.count_sentences() if options.rare_sentences else None
        # CheXzero's pixels are resampled after normalisation and do not fit into 8 bits.
        float_pixels = image_processor.geometry == "pad" and image_processor.resize_edge is not None
        self.output_dtype = "float32" if float_pixels else "uint8"

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        if self.images is not None:
            self.images.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.records)

    def texts(self) -> Iterator[str]:
        """The text of each record; where texts are drawn, the impression, or the findings without an impression."""
        # Not the whole report: few whole reports are equal, but the texts drawn from them often are.
        draws = self.options.sample_sentences or self.options.sentences_per_image
        source = "both" if draws else self.options.text
        for record in self.records.select_columns(list(SECTIONS)):
            yield clean_text(select_text(record, source), self.options.deidentified)

    def texts_of_all_epochs(self) -> Iterator[str]:
        """Every text that a pair can have, if each epoch draws from the same ones (not with `sample_sentences`)."""
        if not self.options.sentences_per_image:
            yield from self.texts()
            return
        for record in self.records.select_columns(list(SECTIONS)):
            yield from distinct_sentences(record).values()

    def count_sentences(self) -> Counter[int]:
        """In how many records each sentence stands, by the groups of [`distinct_sentences`]."""
        records = self.records.select_columns(list(SECTIONS))
        return Counter(itertools.chain.from_iterable(map(distinct_sentences, records)))

    def use_features(self, features: ImageFeatures) -> None:
        """From now on, pairs have a `vision_hidden_state` in place of `pixel_values`, and no image is read."""
        self.features = features
        self.records = self.records.select_columns(["image_id", *SECTIONS])

    def __getitem__(self, index: int) -> dict:
        """
        `index`, `image_id`, and either `pixel_values` (1, height, width) with `text` (or `texts` and `groups`), or the
        image's `error`.
        """
        record = self.records[index]
        rng = np.random.default_rng([self.options.seed, self.epoch, index])
        pair = {"index": index, "image_id": record["image_id"]}
        try:
            if self.features is not None:
                pair["vision_hidden_state"] = self.features.read(index)
            else:
                source = record["image"] if self.images is None else self.images.read(index)
                pair["pixel_values"] = self.make_views(self.image_processor.read(source), rng)
        except ValueError as error:
            return {**pair, "error": str(error)}
        if self.options.sentences_per_image:
            count, counts, rarity = self.options.sentences_per_image, self.sentence_counts, self.options.rare_sentences
            pair["texts"], pair["groups"] = draw_sentences(record, count, rng, counts, rarity)
        elif self.options.sample_sentences:
            pair["text"] = sample_text(record, rng)
        else:
            pair["text"] = clean_text(select_text(record, self.options.text), self.options.deidentified)
        if self.groups is not None:
            pair["group"] = int(self.groups[index])
        return pair

    def make_views(self, image: Image.Image, rng: np.random.Generator) -> torch.Tensor:
        """(1, height, width), or (image_views, 1, height, width) with several."""
        views = [self.make_pixels(image, rng) for _ in range(self.options.image_views)]
        return torch.stack(views) if len(views) > 1 else views[0]

    def make_pixels(self, image: Image.Image, rng: np.random.Generator) -> torch.Tensor:
        """(1, height, width), 8 bits where the image processor allows; the device normalises them."""
        if self.options.augmentation == "tier":
            return torch.from_numpy(np.array(augment_tier(image, rng, self.image_processor)))[None]
        if self.options.augmentation == "standard":
            image = augment(image, rng)
        return self.image_processor([image], output_dtype=self.output_dtype, return_tensors="pt")["pixel_values"][0]


def sample_text(record: Mapping, rng: np.random.Generator) -> str:
    """
    The sentences of the impression, of the findings, or of both, in random order. A report says the same in any order,
    and the variation keeps the model from memorizing a small set of reports.

    Args:
        record (`Mapping`): with the columns `impression` and `findings`, at least one of them not empty.
        rng (`np.random.Generator`): the source of all randomness.
    """
    impression, findings = (split_sentences(record[section] or "") for section in SECTIONS)
    choice = rng.choice(3, p=(0.4, 0.3, 0.3))
    sentences = (impression, findings, impression + findings)[choice] or impression + findings
    if not sentences:  # only marks and numbers
        return select_text(record, "both")
    return " ".join(sentences[i] for i in rng.permutation(len(sentences)))


def distinct_sentences(record: Mapping) -> dict[int, str]:
    """The sentences of impression and findings by their groups, see [`draw_sentences`]."""
    distinct: dict[int, str] = {}
    for sentence in (sentence for section in SECTIONS for sentence in split_sentences(record[section] or "")):
        distinct.setdefault(text_hash(sentence), sentence)
    if not distinct:  # only marks and numbers
        text = select_text(record, "both")
        distinct = {text_hash(text): text}
    return distinct


def draw_sentences(
    record: Mapping,
    count: int,
    rng: np.random.Generator,
    sentence_counts: Mapping[int, int] | None = None,
    rarity: float = 0.0,
) -> tuple[list[str], list[int]]:
    """
    Sentences of the impression and the findings, drawn without replacement. Sentences that say the same count once. A
    report with fewer sentences gives all of them, and repeats in another order until there are enough.

    Args:
        record (`Mapping`): with the columns `impression` and `findings`, at least one of them not empty.
        count (`int`): how many sentences.
        rng (`np.random.Generator`): the source of all randomness.
        sentence_counts (`Mapping`, *optional*): in how many records each group stands.
        rarity (`float`, *optional*, defaults to 0.0): a sentence of n records is drawn next with a probability
            proportional to n ** -rarity.

    Returns:
        `tuple`: the sentences, and for each its group, which all sentences that say the same share (see
        [`text_hash`]).
    """
    distinct = distinct_sentences(record)
    groups = list(distinct)
    drawn: list[int] = []
    while len(drawn) < count:
        if rarity:  # the smallest of exponential times with these rates comes first
            counts = np.array([sentence_counts[group] for group in groups], float)
            order = np.argsort(rng.exponential(size=len(groups)) * counts**rarity)
        else:
            order = rng.permutation(len(groups))
        drawn.extend(groups[i] for i in order)
    drawn = drawn[:count]
    return [distinct[group] for group in drawn], drawn
