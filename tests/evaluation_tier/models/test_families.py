"""Models of other families than TIER's are embedded as their owners' processors do it, or refused."""

import numpy as np
import pytest
import torch
from transformers import (
    ChineseCLIPConfig,
    ChineseCLIPModel,
    Siglip2Config,
    Siglip2ImageProcessorPil,
    Siglip2Model,
    Siglip2Processor,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipProcessor,
    pipeline,
)

import modeling_tier.pipeline_tier  # noqa: F401 (registers the pipeline)
from evaluation_tier.analyses.robustness.evaluation import evaluate_robustness
from evaluation_tier.models.embedding import embed_images, embed_prompts
from evaluation_tier.models.loading import load_model
from evaluation_tier.scoring.protocols import choose_protocol
from evaluation_tier.scoring.zeroshot import evaluate_zero_shot
from evaluation_tier.statistics.resampling import Resampling
from modeling_tier.texts_tier import embed_texts
from processing_tier.prompts.loader import Prompts
from processing_tier.radiograph_tier import read_radiograph

TOWER = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXTS = ["Edema.", "No edema.", "There is a small left pleural effusion, and the heart is enlarged. " * 3]
LENGTH = 64  # tokens: what all models of the family were trained on


def make_tokenizer(**options) -> Siglip2Tokenizer:
    letters = "▁abcdefghijklmnopqrstuvwxyz.,"
    vocab = {token: i for i, token in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *letters])}
    options = {"padding_side": "right", "model_input_names": ["input_ids"], **options}
    return Siglip2Tokenizer(vocab=vocab, merges=[], **options)


def make_siglip(**options) -> tuple[SiglipModel, SiglipProcessor]:
    torch.manual_seed(0)
    tokenizer = make_tokenizer(**options)
    text = {**TOWER, "vocab_size": len(tokenizer), "max_position_embeddings": LENGTH, "projection_size": 24}
    text |= {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    vision = {**TOWER, "hidden_size": 24, "image_size": 32, "patch_size": 8}
    image_processor = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).eval()
    return model, SiglipProcessor(image_processor, tokenizer)


def make_siglip2() -> tuple[Siglip2Model, Siglip2Processor]:
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    text = {**TOWER, "vocab_size": len(tokenizer), "max_position_embeddings": LENGTH, "projection_size": 24}
    text |= {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    vision = {**TOWER, "hidden_size": 24, "num_patches": 256, "patch_size": 16}
    image_processor = Siglip2ImageProcessorPil()
    model = Siglip2Model(Siglip2Config(text_config=text, vision_config=vision)).eval()
    return model, Siglip2Processor(image_processor, tokenizer)


def expected_texts(model, processor, texts) -> np.ndarray:
    inputs = processor(text=texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
    assert list(inputs) == ["input_ids"] and inputs["input_ids"].shape == (len(texts), LENGTH)
    with torch.no_grad():
        features = model.get_text_features(**inputs).pooler_output
    return torch.nn.functional.normalize(features, dim=-1).numpy()


def expected_images(model, processor, dataset) -> np.ndarray:
    radiographs = [read_radiograph(image).convert("RGB") for image in dataset["image"]]
    with torch.no_grad():
        features = model.get_image_features(**processor(images=radiographs, return_tensors="pt")).pooler_output
    return torch.nn.functional.normalize(features, dim=-1).numpy()


@pytest.mark.parametrize("make", [make_siglip, make_siglip2])
def test_siglip_is_embedded_as_its_own_processor_does_it(make, phantom, tmp_path):
    model, processor = make()
    for part in (model, processor):
        part.save_pretrained(tmp_path)
    loaded, loaded_processor = load_model(tmp_path)
    assert type(loaded) is type(model) and type(loaded_processor) is type(processor)
    with torch.no_grad():
        together = embed_texts(loaded, loaded_processor.tokenizer, TEXTS).numpy()
        alone = embed_texts(loaded, loaded_processor.tokenizer, TEXTS[:1]).numpy()
    expected = expected_texts(model, processor, TEXTS)
    np.testing.assert_allclose(together, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(alone, expected[:1], rtol=0, atol=1e-6)

    few = phantom.select(range(20))
    images = embed_images(loaded, loaded_processor, few, batch_size=8)
    np.testing.assert_allclose(images, expected_images(model, processor, few), rtol=0, atol=1e-6)

    prompts = {"Edema": Prompts(TEXTS[:1], TEXTS[1:2])}
    positive, negative = embed_prompts(loaded, loaded_processor, prompts)
    options = {
        "findings": ["Edema"],
        "protocol": choose_protocol(prompts=prompts, scoring="difference"),
        "min_positives": 1,
        "resampling": Resampling(10),
    }
    _, predictions = evaluate_zero_shot({"m": (loaded, loaded_processor)}, few, **options)
    scores = images @ (expected[0] - expected[1])
    np.testing.assert_allclose(predictions["score_Edema"], scores, rtol=0, atol=1e-6)
    np.testing.assert_allclose(positive - negative, [expected[0] - expected[1]], rtol=0, atol=1e-6)


def test_siglip_gets_no_mask_from_a_tokenizer_that_makes_one():
    model, processor = make_siglip()
    other = make_tokenizer(model_input_names=["input_ids", "attention_mask"])
    assert "attention_mask" in other(TEXTS)
    with torch.no_grad():
        embeddings = embed_texts(model, other, TEXTS).numpy()
    np.testing.assert_allclose(embeddings, expected_texts(model, processor, TEXTS), rtol=0, atol=1e-6)


def test_what_was_wrong_before_is_far_from_right():
    """Padded to the longest, with a mask: the test above would notice."""
    model, processor = make_siglip(model_input_names=["input_ids", "attention_mask"])
    inputs = processor.tokenizer(TEXTS, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
    with torch.no_grad():
        wrong = model.get_text_features(**inputs).pooler_output
        right = embed_texts(model, processor.tokenizer, TEXTS)
    assert torch.nn.functional.cosine_similarity(wrong, right).min() < 0.99


def test_robustness_refuses_images_of_any_shape(phantom):
    with pytest.raises(
        ValueError, match="A Siglip2Model takes images of any shape: name a model that takes square images."
    ):
        evaluate_robustness(*make_siglip2(), phantom, resampling=Resampling(1))


def test_a_family_that_is_not_known_to_be_right_is_refused(tier_model, tmp_path):
    text = {**TOWER, "vocab_size": 99, "max_position_embeddings": 64}
    vision = {**TOWER, "image_size": 32, "patch_size": 8}
    model = ChineseCLIPModel(ChineseCLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    model.save_pretrained(tmp_path)
    tier_model[1].save_pretrained(tmp_path)
    message = (
        "Models of the kind 'chinese_clip' are not supported, because wrong scores would go unnoticed. "
        "Use one of the kinds tier_clip, tier_siglip, tier_dual_encoder, clip, siglip, siglip2."
    )
    with pytest.raises(ValueError) as error:
        load_model(tmp_path)
    assert str(error.value) == message
    with pytest.raises(ValueError) as error:
        pipeline("cxr-zero-shot-classification", model=model, processor=tier_model[1], device="cpu")
    assert str(error.value) == message
