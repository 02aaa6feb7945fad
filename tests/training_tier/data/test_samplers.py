import itertools
from collections import Counter

import numpy as np
import pytest
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from torch.utils.data import DataLoader

from training_tier.data.collator import PairCollator
from training_tier.data.pairs import PairDataset, PairOptions
from training_tier.data.samplers import DistinctTextSampler, SimilarLengthSampler

NORMAL = ("No acute disease.", "no  acute disease", "NO ACUTE DISEASE")  # the same report, said three times


class Texts:
    """As much of a PairDataset as the sampler asks for; its items are its indices."""

    def __init__(self, texts):
        self.epoch = 0
        self.texts = lambda: iter(texts)
        self.length = len(texts)

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return index


def make_dataset(counts, singles):
    """`counts[i]` copies of a text i, and so many texts that come once, in a fixed mixed order."""
    copies = [f"text {i}" for i, count in enumerate(counts) for _ in range(count)]
    texts = copies + [f"single {i}" for i in range(singles)]
    return Texts([texts[i] for i in np.random.default_rng(0).permutation(len(texts))])


def batches_of(sampler, epoch=0):
    sampler.dataset.epoch = epoch
    order = list(sampler)
    return [order[i : i + sampler.batch_size] for i in range(0, len(order), sampler.batch_size)]


@pytest.mark.parametrize(("size", "singles"), [(8, 40), (8, 43), (5, 0), (74, 40)])
def test_equal_texts_are_in_different_batches_or_spread_evenly(size, singles):
    counts = [6, 23, 2, 3]  # of 9 batches (8 at size 8 and 40 singles), 23 copies are too many
    sampler = DistinctTextSampler(make_dataset(counts, singles), size)
    for epoch in range(20):
        batches = batches_of(sampler, epoch)
        assert sorted(itertools.chain.from_iterable(batches)) == list(range(sum(counts) + singles))
        whole = [batch for batch in batches if len(batch) == size]
        for group, count in Counter(sampler.groups.tolist()).items():
            per_batch = [int((sampler.groups[batch] == group).sum()) for batch in whole]
            assert max(per_batch) <= -(-count // len(whole)) and max(per_batch) - min(per_batch) <= 1


def test_case_and_punctuation_make_no_other_text_and_no_words_are_one_group():
    texts = [*NORMAL, ".", "", "Edema.", "Pneumonia.", "Effusion."]
    sampler = DistinctTextSampler(Texts(texts), batch_size=2)
    assert sampler.groups.tolist() == [0, 0, 0, -1, -1, 1, 2, 3]
    for epoch in range(20):
        for batch in batches_of(sampler, epoch):
            assert len(set(batch) & {0, 1, 2}) <= 1 and len(set(batch) & {3, 4}) <= 1


def test_the_order_is_that_of_seed_and_epoch_and_random():
    dataset = make_dataset([4], 60)
    sampler = DistinctTextSampler(dataset, 8, seed=1)
    assert batches_of(sampler, 3) == batches_of(DistinctTextSampler(dataset, 8, seed=1), 3)
    assert batches_of(sampler, 3) != batches_of(sampler, 4)
    assert batches_of(sampler, 3) != batches_of(DistinctTextSampler(dataset, 8, seed=2), 3)
    # two records that say different things meet as often as chance has it: 400 x 7 / 63 = 44 +- 6.3
    singles = np.flatnonzero(sampler.groups != sampler.groups[np.bincount(sampler.groups)[sampler.groups] > 1][0])
    meetings = np.zeros((64, 64), dtype=int)
    for epoch in range(400):
        for batch in batches_of(sampler, epoch):
            meetings[np.ix_(batch, batch)] += 1
    meetings = meetings[np.ix_(singles, singles)][np.triu_indices(len(singles), 1)]
    assert 15 < meetings.min() and meetings.max() < 75 and abs(meetings.mean() - 44.4) < 2


def test_each_record_is_left_out_about_as_often():
    sampler = DistinctTextSampler(make_dataset([10], 37), 15)  # 47 = 3 x 15 + 2
    left_out = Counter(itertools.chain.from_iterable(batches_of(sampler, epoch)[-1] for epoch in range(1000)))
    assert 20 < min(left_out.values()) and max(left_out.values()) < 70 and len(left_out) == 47  # 42.6 +- 6.4


@pytest.mark.parametrize("drop_last", [True, False])
def test_over_processes_and_after_a_resumption_the_batches_are_the_same(drop_last):
    dataset = make_dataset([6, 5], 40)
    dataset.epoch = 2
    whole = batches_of(DistinctTextSampler(dataset, 12), 2)
    processes = []
    for rank in range(3):
        sampler = DistinctTextSampler(dataset, 12)
        loader = DataLoader(dataset, batch_size=4, sampler=sampler, drop_last=drop_last)
        loader = prepare_data_loader(loader, None, 3, rank, put_on_device=False)
        own = [batch.tolist() for batch in loader]
        assert [batch.tolist() for batch in skip_first_batches(loader, 2)] == own[2:]
        processes.append(own)
    steps = [list(itertools.chain.from_iterable(step)) for step in zip(*processes, strict=True)]
    assert steps[:4] == whole[:4] and len(steps) == (4 if drop_last else 5)


def test_the_text_that_is_used_counts(phantom, processor):
    records = phantom.select(range(4)).remove_columns(["impression", "findings"])
    records = records.add_column("impression", ["Normal.", "Normal.", "Edema.", ""])
    records = records.add_column("findings", ["A.", "B.", "C.", "Normal."])
    groups = {}
    for name, options in {"impression": {}, "both": {"text": "both"}, "drawn": {"sample_sentences": True}}.items():
        dataset = PairDataset(records, processor.image_processor, PairOptions(**options))
        groups[name] = DistinctTextSampler(dataset, 2).groups.tolist()
    assert groups == {"impression": [0, 0, 1, -1], "both": [0, 0, 1, 0], "drawn": [0, 0, 1, 0]}


def test_soft_targets_have_the_same_groups(phantom, processor):
    records = phantom.select(range(4)).remove_columns(["impression"])
    records = records.add_column("impression", ["Edema.", "Normal.", "NORMAL", "Effusion"])
    dataset = PairDataset(records, processor.image_processor, PairOptions(soft_targets=True))
    batch = PairCollator(processor.tokenizer)([dataset[i] for i in (3, 2, 1, 0)])
    assert batch["text_groups"].tolist() == [2, 1, 1, 0] and list(batch)[-1] == "return_loss"
    assert "text_groups" not in PairCollator(processor.tokenizer)([PairDataset(records, processor.image_processor)[0]])


def length_sampler(lengths, size, multiple=1, seed=0):
    """Of texts with so many tokens."""

    def tokenizer(texts, truncation):
        return {"input_ids": [[0] * len(text.split()) for text in texts]}

    return SimilarLengthSampler(Texts(["a " * length for length in lengths]), tokenizer, size, multiple, seed)


LENGTHS = np.random.default_rng(0).integers(5, 77, 203)


def test_texts_of_similar_lengths_share_a_batch_and_each_record_comes_once():
    sampler = length_sampler(LENGTHS, 10)
    for epoch in range(3):
        batches = batches_of(sampler, epoch)
        assert sorted(itertools.chain.from_iterable(batches)) == list(range(203))
        ranges = sorted((LENGTHS[batch].min(), LENGTHS[batch].max()) for batch in batches[:20])
        assert all(above >= high for (_, high), (above, _) in itertools.pairwise(ranges))  # one window of batches
        assert ranges != [(LENGTHS[batch].min(), LENGTHS[batch].max()) for batch in batches[:20]]
    assert batches_of(sampler, 2) == batches_of(length_sampler(LENGTHS, 10), 2) != batches_of(sampler, 1)
    assert batches_of(sampler, 2) != batches_of(length_sampler(LENGTHS, 10, seed=1), 2)


def test_what_is_padded_to_one_length_is_mixed():
    plain, mixed = length_sampler(LENGTHS, 10), length_sampler(LENGTHS, 10, multiple=16)
    padded = [[-(-LENGTHS[batch].max() // 16) for batch in batches_of(sampler)[:20]] for sampler in (plain, mixed)]
    assert sum(padded[1]) <= sum(padded[0])
    spread = [np.mean([np.ptp(LENGTHS[batch]) for batch in batches_of(s)[:20]]) for s in (plain, mixed)]
    assert spread[0] < 5 < 10 < spread[1] < 16


def test_fewer_records_than_a_batch_have_an_order_too():
    assert sorted(length_sampler(LENGTHS[:3], 10)) == [0, 1, 2] and list(length_sampler([], 10)) == []


def test_over_processes_and_after_a_resumption_the_batches_of_similar_lengths_are_the_same():
    whole = batches_of(length_sampler(LENGTHS, 12), 2)
    processes = []
    for rank in range(3):
        sampler = length_sampler(LENGTHS, 12)
        sampler.dataset.epoch = 2
        loader = DataLoader(sampler.dataset, batch_size=4, sampler=sampler, drop_last=True)
        loader = prepare_data_loader(loader, None, 3, rank, put_on_device=False)
        own = [batch.tolist() for batch in loader]
        assert [batch.tolist() for batch in skip_first_batches(loader, 2)] == own[2:]
        processes.append(own)
    steps = [list(itertools.chain.from_iterable(step)) for step in zip(*processes, strict=True)]
    assert steps == whole[:16]
