"""Hard negatives of a training: drawn anew in each epoch, and yet reproducible."""

import pytest
import torch
from safetensors.torch import load_file
from training_runs import QUICK, run

from training_tier.data.collator import PairCollator
from training_tier.data.pairs import PairDataset, PairOptions
from training_tier.options.data import DataArguments

FORMS = [{}, {"sample_sentences": True}, {"sentences_per_image": 3}]


@pytest.mark.parametrize("form", FORMS)
def test_they_are_a_text_of_the_pair_with_one_sentence_contradicted(records, image_processor, form):
    plain = PairDataset(records, image_processor, PairOptions(text="both", seed=1, **form))
    dataset = PairDataset(records, image_processor, PairOptions(text="both", seed=1, hard_negatives=True, **form))
    for index in range(len(dataset)):
        pair, expected = dataset[index], plain[index]
        negative = pair.pop("negative")
        assert torch.equal(pair.pop("pixel_values"), expected.pop("pixel_values")) and pair == expected
        texts = pair.get("texts") or [pair["text"]]
        assert negative is not None and negative not in texts
        nearest = min(abs(len(negative) - len(text)) for text in texts)
        assert nearest <= len("do not appear ")  # a few letters differ
        assert dataset[index]["negative"] == negative
    before = [dataset[i]["negative"] for i in range(6)]
    dataset.set_epoch(1)
    assert [dataset[i]["negative"] for i in range(6)] != before


def test_a_batch_has_them_after_the_texts(records, image_processor, processor):
    dataset = PairDataset(records, image_processor, PairOptions(sentences_per_image=2, hard_negatives=True))
    pairs = [dataset[i] for i in range(4)]
    pairs[1]["negative"] = None
    batch = PairCollator(processor.tokenizer)([*pairs, {"index": 4, "image_id": "x", "error": "cut short"}])
    texts = [pair["texts"][k] for k in range(2) for pair in pairs]
    texts += [pair["negative"] or pair["texts"][0] for pair in pairs]
    expected = processor.tokenizer(texts, padding=True, return_tensors="pt")
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    assert batch["negative_mask"].tolist() == [True, False, True, True]
    assert batch["texts_per_image"] == 2 and len(batch["text_groups"]) == 8


def test_one_whose_difference_is_truncated_does_not_count(processor):
    text = "Effusion. " * 200
    pixels = torch.zeros(1, 4, 4, dtype=torch.uint8)
    pair = {
        "index": 0,
        "image_id": "a",
        "pixel_values": pixels,
        "text": text + "Edema.",
        "negative": text + "No edema.",
    }
    batch = PairCollator(processor.tokenizer)([pair, {**pair, "negative": "No " + text}])
    assert batch["negative_mask"].tolist() == [False, True]


def test_what_does_not_go_together_is_refused():
    with pytest.raises(ValueError, match="^hard_negatives and image_views=2 do not work together; leave one of them"):
        DataArguments(hard_negatives=True, image_views=2)


@pytest.mark.slow
def test_a_training_resumes_to_the_same_weights_and_differs_from_a_plain_one(image_folder, tmp_path):
    argv = [*QUICK, "--data", image_folder, "--max_steps", "4", "--save_strategy", "steps", "--save_steps", "2"]
    argv += ["--load_best_model_at_end", "false"]
    hard = [*argv, "--hard_negatives", "true"]
    run(*hard, "--output_dir", tmp_path / "whole")
    run(*hard, "--resume_from_checkpoint", tmp_path / "whole" / "checkpoint-2", "--output_dir", tmp_path / "resumed")
    run(*argv, "--output_dir", tmp_path / "plain")
    folders = ("whole", "resumed", "plain")
    whole, resumed, plain = (load_file(tmp_path / name / "model.safetensors") for name in folders)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert any(not torch.equal(whole[name], plain[name]) for name in whole)


def test_reports_that_cannot_be_contradicted_are_told(records, image_processor):
    others = records.map(lambda _: {"impression": "Keine Ergüsse.", "findings": ""})
    datasets = [PairDataset(each, image_processor, PairOptions(hard_negatives=True)) for each in (records, others)]
    assert [dataset.count_contradicted() for dataset in datasets] == [(6, 6), (0, 6)]
