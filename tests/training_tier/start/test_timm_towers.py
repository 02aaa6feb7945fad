"""Image towers of timm, in the layout of the Hub (`config.json` without a model_type), and the sentence without it."""

import importlib.util
import json

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizer
from transformers.utils import is_timm_available

from modeling_tier import TierDualEncoderConfig, TierDualEncoderModel
from training_tier.options.model import ModelArguments
from training_tier.start.initialization import make_model

EVA_X = {  # hustvl/EVA-X, eva_x.py at dc4f32a: ViTs of EVA-02 with 16-pixel patches; here they are small
    "architecture": "eva02_small_patch14_224",
    "num_classes": 0,
    "num_features": 32,
    "model_args": {  # with what timm itself adds
        "num_classes": 0,
        "in_chans": 3,
        "global_pool": "avg",
        "img_size": 224,
        "patch_size": 16,
        "ref_feat_shape": [14, 14],
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 2,
    },
    "pretrained_cfg": {
        "input_size": [3, 224, 224],
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "mean": [0.49185243, 0.49185243, 0.49185243],
        "std": [0.28509309, 0.28509309, 0.28509309],
        "num_classes": 0,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    },
}


def timm_entry(architecture: str, size: int, **model_args) -> dict:
    settings = {**EVA_X["pretrained_cfg"], "input_size": [3, size, size], "interpolation": "bilinear"}
    return {"architecture": architecture, "num_classes": 1000, "model_args": model_args, "pretrained_cfg": settings}


SMALL = {"embed_dim": 32, "depth": 1, "num_heads": 2}
# and its size, rows of patches, places of the patches, whether it has a class token
ENTRIES = {
    "EVA-X": (EVA_X, 224, 14, (8, 16), True),
    "vit": (timm_entry("vit_tiny_patch16_224", 224, **SMALL), 224, 14, (8, 16), True),
    "dinov2 with registers": (
        timm_entry("vit_small_patch14_reg4_dinov2", 126, img_size=126, **SMALL),
        126,
        9,
        (7, 14),
        True,
    ),
    "registers without a class token": (
        timm_entry("vit_medium_patch16_reg4_gap_256", 256, **SMALL),
        256,
        16,
        (8, 16),
        False,
    ),
    "siglip": (timm_entry("vit_base_patch16_siglip_gap_224", 224, **SMALL), 224, 14, (8, 16), False),
    "swin": (
        timm_entry("swin_tiny_patch4_window7_224", 224, depths=[1, 1, 1, 1], embed_dim=8, num_heads=[1, 1, 1, 1]),
        224,
        7,
        (16, 32),
        False,
    ),
    "convnext": (timm_entry("convnext_atto", 224, depths=[1, 1, 1, 1], dims=[8, 8, 8, 32]), 224, 7, (16, 32), False),
    "resnet": (timm_entry("resnet10t", 224), 224, 7, None, False),
}
needs_timm = pytest.mark.skipif(not is_timm_available(), reason="timm or torchvision is missing")


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "clear", "lungs"]))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=7, **sizes)).save_pretrained(folder)
    return str(folder)


@needs_timm
@pytest.mark.parametrize("name", ENTRIES)
def test_a_model_of_timm(name, text_folder, tmp_path):
    import timm
    from safetensors.torch import save_file

    entry, size, side, centers, has_class_token = ENTRIES[name]
    torch.manual_seed(0)
    options = {"num_classes": entry["num_classes"], **entry["model_args"]}
    owner = timm.create_model(entry["architecture"], pretrained=False, **options).eval()
    (tmp_path / "config.json").write_text(json.dumps(entry))
    save_file(owner.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    model, processor = make_model(ModelArguments(vision_model=str(tmp_path), text_model=text_folder), [])
    model.eval()

    # pixels
    assert processor.image_processor.size == {"height": size, "width": size} and model.config.image_size == size
    assert model.config.pixel_mean == list(processor.image_processor.image_mean) == [0.49185243] * 3
    assert model.config.pixel_std == list(processor.image_processor.image_std) == [0.28509309] * 3
    assert processor.image_processor.resample == (3 if name == "EVA-X" else 2)

    # weights and patches
    pixels = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected = owner.forward_features(pixels)
        outputs, features = model.run_image_tower(pixels)
    assert torch.equal(outputs.last_hidden_state, expected)
    assert (features.rows, features.columns) == (side, side)
    assert features.tokens.shape == (2, side * side + has_class_token, owner.num_features)
    if expected.ndim == 3:
        assert torch.equal(features.patches, expected[:, -side * side :])
        assert not has_class_token or torch.equal(features.tokens[:, 0], expected[:, 0])
    elif name == "swin":
        assert torch.equal(features.tokens, expected.flatten(1, 2))
    if centers is not None:
        assert model.patch_centers == centers

    # a step, and the saved model
    tokens = processor.tokenizer(["clear lungs", "clear"], padding=True, return_tensors="pt")
    model.train()
    model(**tokens, pixel_values=pixels, return_loss=True).loss.backward()
    assert sum(p.grad is not None and bool(p.grad.any()) for p in model.vision_model.parameters()) > 5
    model.eval().save_pretrained(tmp_path / "saved")
    vision = json.loads((tmp_path / "saved" / "config.json").read_text())["vision_config"]
    assert vision["model_type"] == "timm_wrapper" and vision["num_features"] == owner.num_features
    assert not vision["label_names"]  # not the thousand classes of ImageNet
    again, info = TierDualEncoderModel.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        inputs = {**tokens, "pixel_values": pixels}
        assert torch.equal(again.eval()(**inputs).logits_per_image, model(**inputs).logits_per_image)
    if name == "vit":
        with pytest.raises(ValueError, match="^image_size=96: the model 'vit_tiny_patch16_224' of timm takes 224"):
            make_model(ModelArguments(vision_model=str(tmp_path), text_model=text_folder, image_size=96), [])


@pytest.mark.skipif(
    importlib.util.find_spec("timm") is not None and importlib.util.find_spec("torchvision") is not None,
    reason="timm is installed",
)
def test_without_timm_it_is_one_sentence(text_folder, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(EVA_X))
    message = (
        "^The image model 'eva02_small_patch14_224' is one of timm, which needs the packages timm and torchvision"
    )
    with pytest.raises(ValueError, match=message):
        make_model(ModelArguments(vision_model=str(tmp_path), text_model=text_folder), [])
    vision = {"model_type": "timm_wrapper", "architecture": "eva02_small_patch14_224", "num_features": 32}
    with pytest.raises(ValueError, match=message):  # as a saved model is loaded
        TierDualEncoderModel(TierDualEncoderConfig(vision_config=vision))
