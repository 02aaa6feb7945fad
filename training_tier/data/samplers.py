"""In which order the pairs of an epoch come, and so which of them share a batch."""

from collections.abc import Iterator

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from processing_tier.reports.duplicates import duplicate_groups
from training_tier.data.pairs import PairDataset

WINDOW = 50  # batches that are ordered by length together, as those of transformers' LengthGroupedSampler


class DistinctTextSampler(torch.utils.data.Sampler):
    """
    An order in which texts that say the same (see [`duplicate_groups`]) stand in different batches: in a contrastive
    loss each would be a false negative of the others. Normal reports repeat word for word.

    A text that comes more often than there are batches is spread evenly: it stands in each batch as often as in any
    other, give or take one. Every record comes once in an epoch, and those that fill no batch come last, another
    random part in each epoch.

    The order depends on `seed`, the epoch that the data set was told (`set_epoch`) and the size of the batches alone,
    so that all the processes have the same one and a resumed run goes on in it.

    Args:
        dataset ([`PairDataset`]): the pairs.
        batch_size (`int`): pairs of one step of all processes together, which are contrasted with one another.
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
        # Groups in random order, the members of each together, in random order: dealt out like cards, one to each
        # batch in turn, they come to lie in different batches.
        turn = rng.permutation(self.groups.max(initial=-1) + 2)[self.groups]  # the group -1 is the last
        deck = np.lexsort((rng.random(len(self)), turn))
        batches, rest = divmod(len(deck), self.batch_size)
        is_rest = np.zeros(len(deck), dtype=bool)
        if rest:  # at even distances, so that they are of different groups too
            is_rest[((np.arange(rest) + rng.random()) * (len(deck) / rest)).astype(int)] = True
        dealt = deck[~is_rest].reshape(self.batch_size, batches).T  # (batches, batch_size)
        dealt = rng.permuted(rng.permutation(dealt), axis=1)
        return iter(np.concatenate([dealt.ravel(), rng.permutation(deck[is_rest])]).tolist())


class SimilarLengthSampler(torch.utils.data.Sampler):
    """
    An order in which texts of similar lengths stand in one batch, so that little of it is padding.

    Each epoch takes the records in random order, sorts the texts of 50 batches at a time by their length, and takes
    the batches of that in random order. Every record comes once in an epoch, and those that fill no batch come last,
    another random part in each epoch.

    In a contrastive loss this changes what is learnt: a pair meets others whose reports are as long as its own, and
    short reports are normal ones more often than long ones.

    The order depends on `seed`, the epoch that the data set was told (`set_epoch`) and the size of the batches alone,
    so that all the processes have the same one and a resumed run goes on in it.

    Args:
        dataset ([`PairDataset`]): the pairs; what their texts are has to be the same in each epoch.
        tokenizer ([`PreTrainedTokenizerBase`]): counts the tokens.
        batch_size (`int`): pairs of one step of all processes together.
        multiple (`int`, *optional*, defaults to 1): lengths up to the same multiple of it count as the same.
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
        batches = rng.permuted(rng.permutation(batches), axis=1)  # each process has its share of the lengths
        return iter(np.concatenate([batches.ravel(), rest]).tolist())
