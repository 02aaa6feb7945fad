import numpy as np
import pytest

from evaluation_tier.models.clip import takes_uint8
from evaluation_tier.models.embedding import embed_batches, embed_images, embed_prompts
from evaluation_tier.models.images import read_batches
from evaluation_tier.scoring.zeroshot import evaluate_zero_shot
from evaluation_tier.statistics.resampling import Resampling
from processing_tier.prompts.loader import Prompts


def test_image_embeddings_are_the_models_normalised(brightness, make_grey_dataset):
    embeds = embed_images(*brightness, make_grey_dataset([0, 51, 255], [0, 0, 1]), batch_size=2)
    angles = np.array([0, 0.2, 1]) * np.pi / 2
    np.testing.assert_allclose(embeds, np.stack([np.cos(angles), np.sin(angles)], axis=1), atol=1e-6)
    assert embeds.dtype == np.float32


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_image_embeddings_do_not_depend_on_the_batch(tier_model, phantom, batch_size):
    model, _ = tier_model
    embeds = embed_images(*tier_model, phantom, batch_size)
    assert embeds.shape == (60, model.config.projection_dim)
    np.testing.assert_allclose(embeds, embed_images(*tier_model, phantom, 20), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(embeds, axis=1), 1, atol=1e-6)


def test_8_bit_pixels_give_the_embeddings_of_float_pixels(tier_model, phantom, monkeypatch):
    assert takes_uint8(*tier_model)
    embeds = embed_images(*tier_model, phantom)
    monkeypatch.setattr("evaluation_tier.models.clip.takes_uint8", lambda *_: False)
    np.testing.assert_allclose(embeds, embed_images(*tier_model, phantom), atol=1e-6)


def test_8_bit_pixels_are_left_alone_where_they_would_differ(make_tier_model, brightness):
    model, processor = make_tier_model(0, pixel_mean=[0.1, 0.1, 0.1])
    assert not takes_uint8(model, processor)  # the image processor normalises with other numbers
    assert not takes_uint8(*brightness)


def test_prompts_are_normalised_averaged_and_normalised_again(tier_model):
    model, processor = tier_model
    sentences = ["Small left pleural effusion.", "Cardiomegaly.", "No pneumothorax."]
    singles = {text: Prompts([text], [text]) for text in sentences}
    embeds = embed_prompts(model, processor, singles, batch_size=2)[0]
    for row, text in zip(embeds, sentences, strict=True):  # alone, so without padding
        features = model.get_text_features(**processor(text=[text], return_tensors="pt")).pooler_output[0]
        np.testing.assert_allclose(row, (features / features.norm()).detach().numpy(), atol=1e-5)
    positive, negative = embed_prompts(model, processor, {"a": Prompts(sentences[:2], sentences[2:])})
    mean = embeds[:2].mean(axis=0)
    np.testing.assert_allclose(positive[0], mean / np.linalg.norm(mean), atol=1e-6)
    np.testing.assert_allclose(negative[0], embeds[2], atol=1e-6)


def test_long_prompts_are_truncated_to_the_text_tower(tier_model):
    positive, _ = embed_prompts(*tier_model, {"a": Prompts(["effusion " * 300], ["None."])})
    assert np.isfinite(positive).all()


def test_damaged_weights_are_named(make_tier_model, phantom):
    model, processor = make_tier_model(1)
    model.visual_projection.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="embeddings are zero or not finite"):
        embed_images(model, processor, phantom)


def test_embeddings_without_length_are_no_fault_of_the_images(make_tier_model, phantom):
    model, processor = make_tier_model(1)
    model.text_projection.weight.data.zero_()
    with pytest.raises(ValueError, match="embeddings are zero or not finite: its weights are damaged"):
        embed_prompts(model, processor, {"a": Prompts(["Edema."], ["No edema."])})
    with pytest.raises(ValueError, match="embeddings are zero or not finite"):
        evaluate_zero_shot({"m": (model, processor)}, phantom, min_positives=5, resampling=Resampling(5))


def test_too_many_unreadable_images_stop(brightness, make_grey_dataset):
    dataset = make_grey_dataset([1, 2, 3] * 20, [0, 1, 0] * 20)
    broken = dataset.map(lambda row, i: {"image": {"bytes": b"no", "path": None}} if i == 3 else {}, with_indices=True)
    with pytest.raises(ValueError, match="1 of 60 images do not decode, more than 1 %"):
        embed_images(*brightness, broken)


def test_an_empty_data_set_is_refused(brightness, make_grey_dataset):
    with pytest.raises(ValueError, match="empty"):
        embed_images(*brightness, make_grey_dataset([1], [0]).select([]))


def test_batches_name_their_rows(tier_model, phantom):
    dataset = phantom.select(range(7))
    rows, pixels, sizes = zip(*read_batches(*tier_model, dataset, 3), strict=True)
    assert [part.tolist() for part in rows] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [tuple(part.shape) for part in pixels] == [(3, 1, 32, 32), (3, 1, 32, 32), (1, 1, 32, 32)]
    assert all((part == 64).all() for part in sizes)  # of the files


def test_batches_leave_out_what_does_not_decode(brightness, make_grey_dataset):
    dataset = make_grey_dataset(range(200), [0] * 200)
    broken = dataset.map(
        lambda _, i: {"image": {"bytes": b"no", "path": None}} if i in (2, 3) else {}, with_indices=True
    )
    rows = [batch.rows.tolist() for batch in read_batches(*brightness, broken, 2)]
    assert rows == [[i, i + 1] for i in range(0, 200, 2) if i != 2]
    with pytest.raises(ValueError, match="At least 2 of 100 images do not decode"):
        list(read_batches(*brightness, broken.select(range(100)), 2))
    some = [batch.rows.tolist() for batch in read_batches(*brightness, broken, 2, rows=np.arange(1, 100, 2))]
    assert some[:2] == [[1], [5, 7]] and len(some) == 25


@pytest.mark.parametrize("image_pooling", ["cls", "patch_mean"])
def test_patches_come_from_the_same_pass(make_tier_model, phantom, image_pooling):
    model, processor = make_tier_model(0)
    model.config.image_pooling = image_pooling
    dataset, passes = phantom.select(range(4)), []
    handle = model.vision_model.register_forward_hook(lambda *_: passes.append(1))
    ((rows, outputs),) = embed_batches(model, processor, dataset)
    handle.remove()
    assert passes == [1]
    (batch,) = read_batches(model, processor, dataset, 4)
    features = model.get_patch_features(batch.pixels).detach()
    expected = features / features.norm(dim=-1, keepdim=True)
    np.testing.assert_allclose(outputs["patches"], expected, atol=1e-6)
    assert ("patch_weights" in outputs) is (image_pooling == "patch_mean")
    if image_pooling == "patch_mean":  # the weighted patches add up to the image
        summed = (outputs["patch_weights"][..., None] * outputs["patches"]).sum(dim=1)
        np.testing.assert_allclose(summed, outputs["image"], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(outputs["image"], embed_images(model, processor, dataset))


def test_findings_without_negative_sentences_have_none(tier_model):
    positive, negative = embed_prompts(*tier_model, {"a": Prompts(["Edema."], []), "b": Prompts(["Mass."], ["No."])})
    assert not negative[0].any() and np.linalg.norm(negative[1]) == pytest.approx(1)
    assert np.linalg.norm(positive, axis=1) == pytest.approx(1)
