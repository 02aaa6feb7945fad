"""Several sentences of a report as several texts of an image: drawn anew in each epoch, and yet reproducible."""

import collections

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training_runs import QUICK, run

from processing_tier.reports.duplicates import text_hash
from processing_tier.reports.sentences import split_sentences
from training_tier.data.collator import PairCollator
from training_tier.data.pairs import PairDataset, PairOptions, draw_sentences
from training_tier.options.data import DataArguments

REPORT = {
    "impression": "1. No acute disease. 2. Stable XXXX heart.",
    "findings": "The lungs are clear. No effusion. NO ACUTE DISEASE. The lungs are clear.",
}
SENTENCES = {"No acute disease.", "Stable heart.", "The lungs are clear.", "No effusion."}


def draw(record, count, seed):
    return draw_sentences(record, count, np.random.default_rng(seed))


def test_each_sentence_is_drawn_once_and_about_equally_often():
    drawn = collections.Counter()
    for seed in range(400):
        texts, groups = draw(REPORT, 2, seed)
        assert len(set(texts)) == 2 and groups == [text_hash(text) for text in texts]
        drawn.update(texts)
    assert drawn.keys() == SENTENCES  # sentences that say the same count once, as first written
    assert all(150 <= count <= 250 for count in drawn.values())


def test_rare_sentences_are_drawn_in_proportion_to_one_over_their_counts():
    counts = {text_hash(text): n for text, n in zip(sorted(SENTENCES), (1, 2, 5, 10), strict=True)}
    for rarity in (1.0, 0.5):
        generator, drawn = np.random.default_rng(0), collections.Counter()
        for _ in range(4000):
            drawn.update(draw_sentences(REPORT, 1, generator, counts, rarity)[0])
        weights = {text: counts[text_hash(text)] ** -rarity for text in SENTENCES}
        expected = {text: 4000 * weight / sum(weights.values()) for text, weight in weights.items()}
        assert all(abs(drawn[text] - count) < 4 * count**0.5 for text, count in expected.items())
    assert set(draw_sentences(REPORT, 4, generator, counts, 1.0)[0]) == SENTENCES  # none twice


def test_the_counts_are_those_of_the_training_records(records, image_processor):
    dataset = PairDataset(records, image_processor, PairOptions(sentences_per_image=2, rare_sentences=1.0))
    sentences = [
        {text_hash(text) for section in ("impression", "findings") for text in split_sentences(record[section] or "")}
        for record in records
    ]
    assert dataset.sentence_counts == collections.Counter(group for groups in sentences for group in groups)
    assert max(dataset.sentence_counts.values()) > 1
    assert dataset[0]["texts"] == dataset[0]["texts"] and len(set(dataset[0]["groups"])) == 2
    with pytest.raises(ValueError, match="^rare_sentences=1 has no effect without --sentences_per_image; add it.$"):
        DataArguments(data="phantom", rare_sentences=1)


def test_a_short_report_gives_all_its_sentences_and_repeats():
    assert set(draw(REPORT, 4, 0)[0]) == SENTENCES
    texts, groups = draw(REPORT, 6, 0)
    assert set(texts) == SENTENCES and sorted(collections.Counter(texts).values()) == [1, 1, 2, 2]
    assert len(set(groups)) == 4
    record = {"impression": "", "findings": "The lungs are clear."}
    assert draw(record, 3, 0)[0] == ["The lungs are clear."] * 3
    assert draw({"impression": "XXXX 2.", "findings": None}, 2, 0)[0] == ["XXXX 2."] * 2  # as it is, without sentences


def test_texts_that_say_the_same_have_one_number_in_every_process():
    assert text_hash("No acute disease.") == text_hash("1. NO  acute disease") == -8862407826336581197
    assert text_hash("No acute diseases.") != text_hash("No acute disease.") and text_hash(" ... ") == 0
    hashes = [text_hash(f"sentence {i}") for i in range(100)]
    assert min(hashes) < 0 < max(hashes) and torch.tensor(hashes).tolist() == hashes  # int64


@pytest.mark.parametrize("workers", [0, 2])
def test_pairs_depend_on_seed_epoch_and_index_alone(records, image_processor, workers):
    options = {"augmentation": "standard", "seed": 1}
    plain = PairDataset(records, image_processor, PairOptions(**options))
    dataset = PairDataset(records, image_processor, PairOptions(sentences_per_image=3, **options))
    dataset.set_epoch(2)
    plain.set_epoch(2)
    loader = torch.utils.data.DataLoader(dataset, num_workers=workers, collate_fn=lambda pairs: pairs[0])
    before = list(loader)
    for index, pair in enumerate(before):
        again = dataset[index]
        assert pair["texts"] == again["texts"] and pair["groups"] == again["groups"] and "text" not in pair
        assert torch.equal(pair["pixel_values"], plain[index]["pixel_values"])  # the option changes the texts alone
        sections = records[index]["impression"], records[index]["findings"]
        assert set(pair["texts"]) <= {sentence for section in sections for sentence in split_sentences(section)}
    dataset.set_epoch(3)
    assert any(dataset[i]["texts"] != pair["texts"] for i, pair in enumerate(before))


def test_a_batch_has_all_first_sentences_then_all_second_ones(records, image_processor, processor):
    dataset = PairDataset(records, image_processor, PairOptions(sentences_per_image=3))
    pairs = [dataset[i] for i in range(4)]
    batch = PairCollator(processor.tokenizer)([*pairs, {"index": 4, "image_id": "x", "error": "cut short"}])
    assert batch["texts_per_image"] == 3 and batch["pixel_values"].shape == (4, 1, 32, 32)
    texts = [pair["texts"][k] for k in range(3) for pair in pairs]
    expected = processor.tokenizer(texts, padding=True, return_tensors="pt")
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    assert torch.equal(batch["attention_mask"], expected["attention_mask"])
    assert batch["text_groups"].tolist() == [text_hash(text) for text in texts]
    assert list(batch)[0] == "pixel_values" and list(batch)[-1] == "return_loss"
    one = PairCollator(processor.tokenizer)([PairDataset(records, image_processor)[0]])
    assert "texts_per_image" not in one and "text_groups" not in one


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sentences_per_image": -1}, "^sentences_per_image=-1 must be at least 0.$"),
        (
            {"sample_sentences": True},
            "^sample_sentences and sentences_per_image=3 both draw the text of an image; use one.$",
        ),
        ({"image_views": 2}, "^sentences_per_image=3 and image_views=2 do not work together; leave one of them out.$"),
        (
            {"soft_targets": True},
            "^soft_targets has no effect with sentences_per_image=3, which never contrasts equal sentences; leave it",
        ),
        (
            {"deidentified": "replace"},
            "^deidentified='replace' has no effect with sentences_per_image, which removes the marks; leave it out.$",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DataArguments(**{"sentences_per_image": 3, **options})


@pytest.mark.slow
def test_a_training_streamed_from_shards_resumes_to_the_same_weights(prepared, tmp_path):
    argv = [*QUICK, "--data", prepared, "--streaming", "--dataloader_num_workers", "2", "--model", "nano"]
    argv += ["--sentences_per_image", "3", "--token_entropy_weight", "0.1", "--avoid_duplicates", "false"]
    argv += ["--max_steps", "4", "--save_strategy", "steps", "--save_steps", "2", "--load_best_model_at_end", "false"]
    run(*argv, "--output_dir", tmp_path / "whole")
    assert "3 sentences of impression and findings for each image" in (tmp_path / "whole" / "README.md").read_text()
    run(*argv, "--resume_from_checkpoint", tmp_path / "whole" / "checkpoint-2", "--output_dir", tmp_path / "resumed")
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "resumed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
