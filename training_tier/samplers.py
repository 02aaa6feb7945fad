"""In which order the pairs of an epoch come, and so which of them share a batch."""

from collections.abc import Iterator

import numpy as np
import torch

from processing_tier.reports import duplicate_groups

from .dataset import PairDataset


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
