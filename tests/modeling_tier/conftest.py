import copy

import pytest
import torch
from dual_towers import CLS, PAD, SEP, text_config, vision_config
from model_checks import BERT, BOS, CLIP_TEXT, EOS, MODELS, RESNET, VISION, VIT, WEIGHTS
from pipeline_checks import SENTENCES, make_pipeline_model
from torch import nn
from transformers import CLIPConfig, CLIPModel, pipeline

from modeling_tier import (
    CxrZeroShotClassificationPipeline,
    TierCLIPConfig,
    TierCLIPModel,
    TierDualEncoderConfig,
    TierDualEncoderModel,
)
from modeling_tier.pipeline_tier import TASK
from processing_tier import TierImageProcessor, TierProcessor, train_tokenizer


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def tiny_sizes() -> dict:
    """Keyword arguments of a CLIP configuration whose model computes in milliseconds: 16 patches, 20 positions."""
    return {"text_config": dict(CLIP_TEXT), "vision_config": dict(VISION), "projection_dim": 24}


@pytest.fixture
def make_tier(tiny_sizes):
    """Function that makes a tiny TierCLIPModel, always of the same weights, from TIER options."""

    def make(**options) -> TierCLIPModel:
        torch.manual_seed(0)
        model = TierCLIPModel(TierCLIPConfig(**tiny_sizes, **options)).eval()
        with torch.no_grad():
            for parameter in model.parameters():  # CLIP's initial layer norms and biases are all ones and zeros
                parameter.add_(0.1 * torch.randn_like(parameter))
        return model

    return make


@pytest.fixture
def clip(tiny_sizes, make_tier) -> CLIPModel:
    """The plain CLIPModel with the weights of `make_tier`'s models."""
    model = CLIPModel(CLIPConfig(**tiny_sizes)).eval()
    model.load_state_dict(make_tier().state_dict(), strict=True)
    return model


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Four pairs; texts of 5, 3, 1 and 0 words, padded to 8 positions with EOS."""
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.full((4, 8), EOS)
    input_ids[:, 0] = BOS
    for row, words in enumerate((5, 3, 1, 0)):
        input_ids[row, 1 : 1 + words] = torch.randint(0, BOS, (words,), generator=generator)
    attention_mask = (torch.arange(8) < torch.tensor([[7], [5], [3], [2]])).long()
    pixel_values = torch.randn(4, 3, 32, 32, generator=generator)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "pixel_values": pixel_values}


@pytest.fixture
def make_model(make_tier):
    """Function that makes a tiny model, always of the same weights: CLIP's with either pooling, or a dual encoder."""

    def make(name: str, **options) -> nn.Module:
        if name in ("cls", "patch_mean"):
            return make_tier(image_pooling=name, **{**WEIGHTS, **options})
        torch.manual_seed(0)
        config = TierDualEncoderConfig(
            text_config=dict(BERT),
            vision_config=dict(RESNET if name == "resnet" else VIT),
            projection_dim=24,
            image_size=32,
            **{**WEIGHTS, **options},
        )
        return TierDualEncoderModel(config).eval()

    return make


@pytest.fixture(params=MODELS)
def model(request, make_model):
    return make_model(request.param)


@pytest.fixture(scope="module")
def processor() -> TierProcessor:
    tokenizer = train_tokenizer(SENTENCES * 2, 600, model_max_length=20)
    return TierProcessor(TierImageProcessor(size={"height": 32, "width": 32}), tokenizer)


@pytest.fixture(scope="module")
def models(processor) -> dict:
    special = {name: getattr(processor.tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return {kind: make_pipeline_model(kind, len(processor.tokenizer), special) for kind in ("clip", "dual")}


@pytest.fixture(params=["clip", "dual"])
def pipe(request, models, processor) -> CxrZeroShotClassificationPipeline:
    return pipeline(TASK, model=copy.deepcopy(models[request.param]), processor=processor, device="cpu")


@pytest.fixture
def clip_pipe(models, processor) -> CxrZeroShotClassificationPipeline:
    return pipeline(TASK, model=copy.deepcopy(models["clip"]), processor=processor, device="cpu")


@pytest.fixture
def make_dual():
    """Function that makes a tiny dual encoder, always of the same weights, from its options."""

    def make(vision=None, text=None, **options) -> TierDualEncoderModel:
        torch.manual_seed(0)
        config = TierDualEncoderConfig(
            vision_config=vision or vision_config(),
            text_config=text or text_config(),
            **{"projection_dim": 24, "image_size": 64, **options},
        )
        model = TierDualEncoderModel(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():  # initial norms and biases are all ones and zeros
                parameter.add_(0.1 * torch.randn_like(parameter))
            for name, buffer in model.named_buffers():
                if name.endswith(("running_mean", "running_var")):
                    buffer.add_(0.1 * torch.rand_like(buffer))
        return model

    return make


@pytest.fixture
def bert_batch() -> dict[str, torch.Tensor]:
    """Four pairs; texts of 5, 3, 1 and 0 words, as a BERT tokenizer pads them to 8 positions."""
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.full((4, 8), PAD)
    for row, words in enumerate((5, 3, 1, 0)):
        input_ids[row, 0], input_ids[row, words + 1] = CLS, SEP
        input_ids[row, 1 : 1 + words] = torch.randint(4, 50, (words,), generator=generator)
    return {
        "input_ids": input_ids,
        "attention_mask": (input_ids != PAD).long(),
        "token_type_ids": torch.zeros_like(input_ids),
        "pixel_values": torch.randn(4, 3, 64, 64, generator=generator),
    }
