"""The order of the pairs of an epoch, and so which of them share a batch. With streaming: `streaming.py`."""

from collections.abc import Iterator

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from processing_tier.reports.duplicates import duplicate_groups
from training_tier.data.pairs import PairDataset

WINDOW = 50  # batches sorted by length together, as in transformers' LengthGroupedSampler


class DistinctTextSampler(torch.utils.data.Sampler):
    """
    An order that puts texts that say the same (see [`duplicate_groups`]) into different batches, because in a
    contrastive loss each would be a false negative of the others. Normal reports often repeat word for word.

    A text with more copies than there are batches is spread evenly: the batches differ by at most one copy. Every
    record comes once in an epoch. The records that do not fill a batch come last; they are others in each epoch.

    The order depends only on `seed`, the epoch of the data set (`set_epoch`) and the batch size. So it is the same in
    all processes and in a resumed run.

    Args:
        dataset ([`PairDataset`]): the pairs.
        batch_size (`int`): pairs of one step in all processes, which are contrasted with one another.
        seed (`int`, *optional*, defaults to 0): of the order.
    """

    def __init__(self, dataset: PairDataset, batch_size: int, seed: int = 0):
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.groups = duplicate_groups(dataset.texts())

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, self.dataset.epoch])
        # Groups in random order, each with its members in random order. They are dealt like cards, one to each batch
        # in turn, so that the members of a group come into different batches.
        turn = rng.permutation(self.groups.max(initial=-1) + 2)[self.groups]  # the group -1 is the last
        deck = np.lexsort((rng.random(len(self)), turn))
        batches, rest = divmod(len(deck), self.batch_size)
        is_rest = np.zeros(len(deck), dtype=bool)
        if rest:  # at even distances, so that they belong to different groups too
            is_rest[((np.arange(rest) + rng.random()) * (len(deck) / rest)).astype(int)] = True
        dealt = deck[~is_rest].reshape(self.batch_size, batches).T  # (batches, batch_size)
        dealt = rng.permuted(rng.permutation(dealt), axis=1)
        return iter(np.concatenate([dealt.ravel(), rng.permutation(deck[is_rest])]).tolist())


class SimilarLengthSampler(torch.utils.data.Sampler):
    """
    An order that puts texts of similar lengths into one batch, to save padding.

    Each epoch shuffles the records, sorts the texts of 50 batches at a time by length, and shuffles these batches.
    Every record comes once in an epoch. The records that do not fill a batch come last; they are others in each epoch.

    This changes what a contrastive loss learns: the negatives of a pair have reports of similar length, and short
    reports are normal more often than long ones.

    The order depends only on `seed`, the epoch of the data set (`set_epoch`) and the batch size. So it is the same in
    all processes and in a resumed run.

    Args:
        dataset ([`PairDataset`]): the pairs. Their texts have to be the same in each epoch.
        tokenizer ([`PreTrainedTokenizerBase`]): counts the tokens.
        batch_size (`int`): pairs of one step in all processes.
        multiple (`int`, *optional*, defaults to 1): lengths with the same next multiple count as equal.
        seed (`int`, *optional*, defaults to 0): of the order.
    """

    def __init__(
        self,
        dataset: PairDataset,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int,
        multiple: int = 1,
        seed: int = 0,
    ):
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        tokens = tokenizer(list(dataset.texts()), truncation=True)["input_ids"]
        self.lengths = -(-np.array([len(ids) for ids in tokens]) // multiple)

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, self.dataset.epoch])
        order = rng.permutation(len(self))
        whole, rest = np.split(order, [len(order) - len(order) % self.batch_size])
        window = np.arange(len(whole)) // (WINDOW * self.batch_size)
        batches = whole[np.lexsort((self.lengths[whole], window))].reshape(-1, self.batch_size)
        batches = rng.permuted(rng.permutation(batches), axis=1)  # so that each process gets its share of the lengths
        return iter(np.concatenate([batches.ravel(), rest]).tolist())
