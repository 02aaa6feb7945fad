"""Records with labels for training and evaluating a classifier: which patients and findings, and batches of them."""

from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import torch

from evaluation_tier.scoring.findings import read_labels, select_findings
from training_tier.data.collator import list_unreadable
from training_tier.data.pairs import PairDataset

NOT_STATED = -100.0  # the one label that the Trainer does not count


def take_patients(records: datasets.Dataset, fraction: float, seed: int) -> datasets.Dataset:
    """
    The images of a share of the patients (at least one patient), in the order of the records. With the same seed and
    records, a larger share contains each smaller one.
    """
    patient_ids = np.array(records["patient_id"][:])
    patients = np.random.default_rng(seed).permutation(np.unique(patient_ids))
    taken = patients[: max(1, round(fraction * len(patients)))]
    return records.select(np.flatnonzero(np.isin(patient_ids, taken)))


def choose_findings(
    train: datasets.Dataset, evaluation: datasets.Dataset, asked: Sequence[str] | None, min_positives: int
) -> tuple[list[str], list[str]]:
    """
    The findings to learn, and the findings whose AUROC selects the checkpoint.

    Args:
        train (`datasets.Dataset`): a finding needs `min_positives` positives and as many negatives here.
        evaluation (`datasets.Dataset`): a finding needs `min_positives` positives and one negative here.
        asked (`Sequence[str]`, *optional*): learn and score these, if they have both classes.
        min_positives (`int`): see above.

    Raises:
        `ValueError`: a data set lacks a requested finding or one of its classes, or every finding is left out.
    """
    learnt, _ = select_findings(train, asked, min_positives)
    if not asked:
        enough = (read_labels(train, learnt) == 0).sum(axis=0) >= min_positives
        learnt = [finding for finding, kept in zip(learnt, enough, strict=True) if kept]
    scored, _ = select_findings(evaluation, asked, min_positives)
    scored = [finding for finding in learnt if finding in scored]
    if not scored:
        raise ValueError(
            f"No finding has {min_positives} positives and as many negatives in the {len(train)} training images, and "
            f"{min_positives} positives in the {len(evaluation)} evaluation images. Lower --min_positives, name "
            "--findings, or use more images."
        )
    return learnt, scored


class LabelledDataset(PairDataset):
    """
    A [`PairDataset`] whose items also have `labels`, a row of float32: 1 present, 0 absent, -100 uncertain or not
    stated.

    Args:
        records (`datasets.Dataset`): with a column for each finding.
        findings (`Sequence[str]`): the columns, in the order of the labels.
        kwargs: what [`PairDataset`] takes.
    """

    def __init__(self, records: datasets.Dataset, findings: Sequence[str], **kwargs: Any) -> None:
        super().__init__(records, **kwargs)
        self.findings = list(findings)
        labels = read_labels(records, findings)
        self.labels = torch.tensor(np.where(labels >= 0, labels, NOT_STATED), dtype=torch.float32)

    def __getitem__(self, index: int) -> dict:
        return {**super().__getitem__(index), "labels": self.labels[index]}


def collate_labelled(items: list[dict]) -> dict:
    """
    Stacks pixels and labels. An image that does not decode becomes black, without labels, and is listed under
    `unreadable`, see [`list_unreadable`]. If no image of a batch decodes, the batch has no pixels. `indices` are the
    numbers of all records, `image_ids` their ids. The Trainer removes all three from the batch.
    """
    batch = {
        "labels": torch.stack(
            [torch.full_like(item["labels"], NOT_STATED) if "error" in item else item["labels"] for item in items]
        ),
        "image_ids": [item["image_id"] for item in items],
        "indices": [item["index"] for item in items],
        "unreadable": list_unreadable(items),
    }
    readable = [item["pixel_values"] for item in items if "error" not in item]
    if readable:
        black = torch.zeros_like(readable[0])
        batch["pixel_values"] = torch.stack([item.get("pixel_values", black) for item in items])
    return batch
