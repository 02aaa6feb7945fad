import numpy as np
import pytest
import torch
from transformers import BatchEncoding

from processing_tier import TierImageProcessor, read_radiograph
from training_tier.data.collator import PairCollator
from training_tier.data.pairs import PairDataset, PairOptions, sample_text


@pytest.mark.parametrize("augmentation", ["standard", "tier"])
def test_a_pair_depends_on_seed_epoch_and_index_alone(records, image_processor, augmentation):
    def pair(index, epoch, seed):
        dataset = PairDataset(
            records, image_processor, PairOptions(augmentation=augmentation, sample_sentences=True, seed=seed)
        )
        dataset.set_epoch(epoch)
        return dataset[index]["pixel_values"]

    first = pair(3, epoch=1, seed=0)
    assert first.dtype == torch.uint8 and first.shape == (1, 32, 32)
    assert torch.equal(first, pair(3, epoch=1, seed=0))
    assert not torch.equal(first, pair(3, epoch=2, seed=0))
    assert not torch.equal(first, pair(3, epoch=1, seed=1))


def test_without_augmentation_the_pixels_are_those_of_the_image_processor(records, image_processor):
    pair = PairDataset(records, image_processor)[2]
    expected = image_processor([read_radiograph(records[2]["image"])], output_dtype="uint8", return_tensors="pt")
    assert torch.equal(pair["pixel_values"], expected["pixel_values"][0])
    assert pair["text"] == records[2]["impression"]


@pytest.mark.parametrize(
    ("deidentified", "expected"),
    [
        ("keep", "Stable XXXX edema. ___ seen."),
        ("remove", "Stable edema. seen."),
        ("replace", "Stable ___ edema. ___ seen."),
    ],
)
def test_marks_of_deidentification_are_an_option(records, image_processor, deidentified, expected):
    marked = records.select([0]).map(lambda row: {"impression": "Stable XXXX  edema. ___ seen."})
    assert PairDataset(marked, image_processor, PairOptions(deidentified=deidentified))[0]["text"] == expected


@pytest.mark.parametrize("geometry", ["pad", "crop", "squash"])
def test_a_large_jpeg_is_decoded_at_reduced_size_as_everywhere(records, geometry, tmp_path):
    picture = read_radiograph(records[1]["image"]).resize((610, 523))
    picture.save(tmp_path / "large.jpg", quality=95)
    large = records.select([1]).map(
        lambda row: {"image": {"bytes": None, "path": str(tmp_path / "large.jpg")}}, features=records.features
    )
    image_processor = TierImageProcessor(size=32, geometry=geometry)
    assert max(image_processor.read(large[0]["image"]).size) < 100
    pixels = PairDataset(large, image_processor)[0]["pixel_values"]
    expected = image_processor([str(tmp_path / "large.jpg")], output_dtype="uint8", return_tensors="pt")
    assert torch.equal(pixels, expected["pixel_values"][0])
    for augmentation in ("standard", "tier"):  # are in shares of the picture, and not in pixels
        results = []
        for reduced, seed in ((True, 0), (False, 0), (False, 1)):
            image_processor = TierImageProcessor(size=32, geometry=geometry, reduced_decoding=reduced)
            dataset = PairDataset(large, image_processor, PairOptions(augmentation=augmentation, seed=seed))
            results.append(dataset[0]["pixel_values"].float())
        same, other = ((results[0] - result).abs().mean() for result in results[1:])
        assert same < 5 and same < other / 3


def test_chexzero_pixels_stay_float(records):
    pixels = PairDataset(records, TierImageProcessor.chexzero(size=32, resize_edge=48))[0]["pixel_values"]
    assert pixels.dtype == torch.float32 and pixels.shape == (3, 32, 32)


@pytest.mark.parametrize("make", [TierImageProcessor, TierImageProcessor.tier, TierImageProcessor.chexzero])
def test_tier_augmentation_gives_one_channel_of_bytes_whatever_the_geometry(records, make):
    options = {} if make is TierImageProcessor else {"resize_edge": 48}
    pixels = PairDataset(records, make(size=32, **options), PairOptions(augmentation="tier"))[0]["pixel_values"]
    assert pixels.dtype == torch.uint8 and pixels.shape == (1, 32, 32)


def test_sampled_sentences_are_the_reports_own():
    record = {"impression": "1. No acute disease. 2. Stable heart.", "findings": "The lungs are clear. No effusion."}
    sentences = {"No acute disease.", "Stable heart.", "The lungs are clear.", "No effusion."}
    texts = {sample_text(record, np.random.default_rng(seed)) for seed in range(60)}
    for text in texts:
        assert {sentence + "." for sentence in text.rstrip(".").split(". ")} <= sentences
    assert {"No acute disease. Stable heart.", "Stable heart. No acute disease."} <= texts  # the impression alone
    assert {"The lungs are clear. No effusion.", "No effusion. The lungs are clear."} <= texts
    assert any(len(text.split(". ")) == 4 for text in texts)


def test_a_section_that_is_empty_is_never_drawn():
    record = {"impression": "", "findings": "The lungs are clear."}
    assert {sample_text(record, np.random.default_rng(seed)) for seed in range(20)} == {"The lungs are clear."}


class Words:
    """A tokenizer of one token per word."""

    model_max_length = 20

    def __call__(self, texts, truncation):
        assert truncation is True
        return BatchEncoding({"input_ids": [[7] * len(text.split()) for text in texts]})

    def pad(self, tokens, padding, max_length, return_tensors):
        assert padding == "max_length" and return_tensors == "pt"
        counts = torch.tensor([len(ids) for ids in tokens["input_ids"]])
        mask = (torch.arange(max_length) < counts[:, None]).long()
        return BatchEncoding({"input_ids": mask * 7, "attention_mask": mask})


def test_a_batch_has_return_loss_last_and_no_key_that_the_trainer_takes_for_labels():
    pairs = [
        {"index": i, "image_id": str(i), "pixel_values": torch.full((1, 2, 2), i), "text": "a " * (i + 1)}
        for i in range(3)
    ]
    batch = PairCollator(Words())(pairs)
    reports = ["image_ids", "indices", "unreadable"]
    assert list(batch) == ["pixel_values", "input_ids", "attention_mask", *reports, "return_loss"]
    assert batch["pixel_values"].shape == (3, 1, 2, 2) and batch["return_loss"] is True
    assert batch["attention_mask"].sum(1).tolist() == [1, 2, 3] and batch["image_ids"] == ["0", "1", "2"]


def test_an_image_that_does_not_decode_leaves_the_batch_and_is_named():
    pairs = [
        {"index": 4, "image_id": "a", "pixel_values": torch.zeros(1, 2, 2), "text": "x"},
        {"index": 7, "image_id": "a", "error": "cut short"},
    ]
    batch = PairCollator(Words())(pairs)
    assert len(batch["pixel_values"]) == len(batch["input_ids"]) == 1
    assert batch["indices"] == [4] and batch["unreadable"] == [(7, "a", "cut short")]
    assert PairCollator(Words())(pairs[1:]) == {"image_ids": [], "indices": [], "unreadable": [(7, "a", "cut short")]}


def test_a_truncated_file_is_an_error_of_its_pair_alone(records, image_processor):
    image = records[0]["image"]
    broken = records.select([0, 1]).map(
        lambda row, i: {"image": {"bytes": image["bytes"][:200], "path": None}} if i == 0 else row,
        with_indices=True,
        features=records.features,
    )
    dataset = PairDataset(broken, image_processor)
    assert "the file is cut short" in dataset[0]["error"] and "pixel_values" not in dataset[0]
    assert "pixel_values" in dataset[1]
