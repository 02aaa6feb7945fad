"""
What frozen towers give for images and texts, computed once for all epochs and runs.

The outputs of a frozen tower never change, as long as its input does not. So training reads them from the disk, and
computes only what is on top of the tower.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from evaluation_tier.models.cache import content_key, hash_tensors
from evaluation_tier.models.clip import NOT_OF_THE_NUMBERS
from evaluation_tier.models.embedding import inference
from evaluation_tier.models.processes import is_main_process
from modeling_tier import TierCLIPModel, TierDualEncoderModel, TierSiglipModel
from modeling_tier.texts_tier import is_padded_to_the_end
from processing_tier.progress import Progress, progress
from training_tier.data import pairs
from training_tier.data.collator import PairCollator
from training_tier.data.feature_folder import Entries, check_space, fill, local_processes, open_store
from training_tier.data.feature_store import FeatureStore
from training_tier.data.features import ImageFeatures, TextFeatures, text_key
from training_tier.data.image_cache import source_key
from training_tier.data.pairs import PairDataset
from training_tier.options.compatibility import refuse
from training_tier.options.feature_rules import rules_on_augmented_features, rules_on_features_of_texts
from training_tier.options.training import usable_cores

logger = logging.getLogger(__name__)

BATCH = 32  # images that a tower sees at once
TEXTS = 64

CODE = (Path(__file__), Path(pairs.__file__))  # that makes the inputs of the towers, beside the shipped code


def cache_features(
    model: TierCLIPModel | TierDualEncoderModel | TierSiglipModel,
    collator: PairCollator,
    pair_datasets: Sequence[PairDataset],
    folder: str | os.PathLike,
    dtype: torch.dtype = torch.float16,
) -> dict[str, str]:
    """
    From now on, `pair_datasets` give what the image tower gives in place of pixels, and `collator` adds what the text
    tower gives, if that is frozen too. The folder keeps both, and what it lacks is computed: of an image, text, tower,
    image processor or code that it does not know. The towers run as in an evaluation, without dropout.

    All processes that train together have to call this. Each computes its share.

    Args:
        model: with a frozen image tower.
        collator ([`PairCollator`]): makes the batches of the pairs.
        pair_datasets (`Sequence[PairDataset]`): without augmentation.
        folder (`str` or `os.PathLike`): created if needed.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float16`): of what is kept.

    Returns:
        `dict`: the hash of the weights of each tower whose features are used, by the tower's attribute.

    Raises:
        `ValueError`: the image tower is not frozen, the images or the kind of model do not allow it, the folder holds
            other things, cannot be used or has no space, or an output is not finite.
    """
    options = [dataset.options for dataset in pair_datasets]
    refuse(*(rules_on_augmented_features(of_dataset.augmentation) for of_dataset in options))
    if not is_frozen(model, "vision_model"):
        raise ValueError(
            "cache_features needs a frozen image tower, but this one is trained, so its outputs change; add "
            "--freeze_image_tower true, or leave cache_features out."
        )
    hashes = {"vision_model": hash_tower(model, "vision_model")}
    if caches_texts(model, options):
        hashes["text_model"] = hash_tower(model, "text_model")
    of_images = {"weights": hashes["vision_model"], "dtype": str(dtype), **describe_images(model, pair_datasets[0])}
    store = open_store(folder, "images", content_key(of_images, CODE))
    for dataset in pair_datasets:
        add_images(store, model, dataset, dtype)
    if "text_model" in hashes:
        of_texts = {"weights": hashes["text_model"], "dtype": str(dtype), **describe_tower(model, "text_model")}
        texts = open_store(folder, "texts", content_key(of_texts, CODE))
        add_texts(texts, model, collator, pair_datasets, dtype)
        collator.text_features = TextFeatures(texts)
    return hashes


def is_frozen(model: torch.nn.Module, name: str) -> bool:
    """Whether nothing in a tower is trained but SigLIP's head, which stands in for a projection."""
    parameters = getattr(model, name).named_parameters()
    return not any(parameter.requires_grad for key, parameter in parameters if not is_head(model, key))


def is_head(model: torch.nn.Module, key: str) -> bool:
    return isinstance(model, TierSiglipModel) and key.startswith("head.")


def hash_tower(model: torch.nn.Module, name: str) -> str:
    """A hash of the weights of a tower, without SigLIP's head."""
    tensors = getattr(model, name).state_dict()
    return hash_tensors({key: tensor for key, tensor in tensors.items() if not is_head(model, key)})


def caches_texts(model: torch.nn.Module, options: Sequence[pairs.PairOptions]) -> bool:
    """Whether the text tower gives the same in every epoch."""
    if not is_frozen(model, "text_model"):
        return False
    if any(of_dataset.sample_sentences for of_dataset in options):
        logger.warning(
            "sample_sentences makes other texts in each epoch: only the outputs of the image tower are cached, and "
            "the text tower runs in each step."
        )
        return False
    config = model.config
    if not is_padded_to_the_end(config):  # whose padding is kept
        weights = (config.token_entropy_weight, config.patch_entropy_weight)
        refuse(rules_on_features_of_texts(config.entropy_tokens, *weights))
    return True


def describe_tower(model: torch.nn.Module, name: str) -> dict:
    """What decides the outputs of a tower, beside its weights and its input."""
    config = getattr(model, name).config.to_dict()
    return {
        "model": type(model).__name__,
        "config": {key: value for key, value in config.items() if key not in NOT_OF_THE_NUMBERS},
        "device": model.device.type,
    }


def describe_images(model: torch.nn.Module, dataset: PairDataset) -> dict:
    """As [`describe_tower`], with what makes the pixels."""
    return {
        **describe_tower(model, "vision_model"),
        "pixels": [getattr(model.config, name, None) for name in ("pixel_mean", "pixel_std", "image_size")],
        "preprocessing": dataset.image_processor.to_dict(),
    }


def add_images(store: FeatureStore, model: torch.nn.Module, dataset: PairDataset, dtype: torch.dtype) -> None:
    """Has a data set read its images from the store, to which those are added that it lacks."""
    images = dataset.all_columns.select_columns(["image"])
    silent = not is_main_process()
    sources = progress(images, "looking at images", "image", silent=silent)
    keys = [source_key(record["image"]) for record in sources]

    def compute(rows: list[int], bar: Progress) -> Entries:
        workers = (usable_cores() - 1) // local_processes()
        first = True
        with inference(model), torch.autocast(model.device.type, enabled=False):
            # A generator of its own: the random numbers of the training are left as they are
            options = {"num_workers": workers, "collate_fn": list, "generator": torch.Generator()}
            for tried in DataLoader(dataset, BATCH, sampler=rows, **options):
                items = [item for item in tried if "error" not in item]  # the data set gives the reason
                if items:
                    pixels = torch.stack([item["pixel_values"] for item in items]).to(model.device)
                    hidden = as_kept(model.get_image_features(pixels).last_hidden_state, dtype, "image")
                    if first:
                        check_space(store.folder, hidden[0].nbytes * len(rows) * local_processes())
                        first = False
                    yield from zip([keys[item["index"]] for item in items], hidden, strict=True)
                bar.update(len(tried))

    fill(store, keys, "images", compute)
    dataset.use_features(ImageFeatures(store, keys, dataset.all_columns, dataset.image_processor))


def add_texts(
    store: FeatureStore,
    model: torch.nn.Module,
    collator: PairCollator,
    pair_datasets: Sequence[PairDataset],
    dtype: torch.dtype,
) -> None:
    """Adds to the store what it lacks of the texts of the pairs, each distinct text once."""
    texts = list(dict.fromkeys(text for dataset in pair_datasets for text in dataset.texts_of_all_epochs()))
    tokens = collator.tokenize(texts)
    lengths = [len(ids) for ids in tokens["input_ids"]]
    keys = [text_key(ids) for ids in tokens["input_ids"]]

    def compute(rows: list[int], bar: Progress) -> Entries:
        rows = sorted(rows, key=lambda row: -lengths[row])  # texts of similar lengths share a batch
        with inference(model), torch.autocast(model.device.type, enabled=False):
            for start in range(0, len(rows), TEXTS):
                taken = rows[start : start + TEXTS]
                batch = collator.pad({name: [values[row] for row in taken] for name, values in tokens.items()})
                inputs = {name: value.to(model.device) for name, value in batch.items()}
                hidden = as_kept(model.get_text_features(**inputs).last_hidden_state, dtype, "text")
                if not collator.for_siglip:  # which reads the padding
                    hidden = [one[: lengths[row]] for row, one in zip(taken, hidden, strict=True)]
                yield from zip([keys[row] for row in taken], hidden, strict=True)
                bar.update(len(taken))

    fill(store, keys, "texts", compute)


def as_kept(hidden: torch.Tensor, dtype: torch.dtype, kind: str) -> torch.Tensor:
    """The outputs of a tower as the store keeps them; ValueError if they are not finite."""
    kept = hidden.to(dtype).cpu()
    if not kept.isfinite().all():
        largest = hidden.abs().max().item()
        raise ValueError(
            f"The {kind} tower gives numbers up to {largest:.3g}, which cache_features does not keep in "
            f"{str(dtype).removeprefix('torch.')}: its weights are damaged, or it needs a training without the cache."
        )
    return kept
