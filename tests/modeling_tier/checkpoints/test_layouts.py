"""Checkpoints in the original layouts give the embeddings of an implementation of each layout, written here."""

import argparse
import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig, BertForMaskedLM, CLIPConfig, CLIPModel, ViTConfig, ViTModel

from modeling_tier import TierCLIPConfig, TierCLIPModel, TierDualEncoderConfig, TierDualEncoderModel
from modeling_tier.checkpoints import Source, load_source, open_source, to_openclip
from modeling_tier.checkpoints.clip import clip_config
from modeling_tier.checkpoints.layout import from_layout, to_layout
from modeling_tier.checkpoints.openai import clip_names
from modeling_tier.checkpoints.source import detect_kind
from modeling_tier.checkpoints.tier import dual_names, resnet_config

TOLERANCE = 1e-5
VOCAB, CONTEXT, DIM = 120, 12, 48
CHEXZERO_FILE = "best_64_5e-05_original_22000_0.864.pt"  # a released name
OPENCLIP_CONFIG = "open_clip_config.json"


# OpenAI's CLIP in plain torch: the names of the parameters are the layout


class Block(nn.Module):
    def __init__(self, width, heads, activation, causal):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})
        self.activation, self.causal = activation, causal

    def forward(self, x):
        length = x.shape[1]
        mask = torch.ones(length, length).triu(1).bool() if self.causal else None
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        y = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](y * torch.sigmoid(1.702 * y) if self.activation == "quick_gelu" else F.gelu(y))


class Blocks(nn.Module):
    def __init__(self, layers, *options):
        super().__init__()
        self.resblocks = nn.Sequential(*(Block(*options) for _ in range(layers)))

    def forward(self, x):
        return self.resblocks(x)


class Visual(nn.Module):
    def __init__(self, width, layers, patch, image, activation):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn((image // patch) ** 2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Blocks(layers, width, width // 64, activation, False)
        self.proj = nn.Parameter(torch.randn(width, DIM) * width**-0.5)

    def forward(self, pixels):
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(pixels), 1, -1), patches], dim=1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class Text(nn.Module):
    def __init__(self, width, layers, activation):
        super().__init__()
        self.token_embedding = nn.Embedding(VOCAB, width)
        self.positional_embedding = nn.Parameter(torch.randn(CONTEXT, width))
        self.transformer = Blocks(layers, width, width // 64, activation, True)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, DIM) * width**-0.5)

    def forward(self, ids):
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        x = self.ln_final(self.transformer(x))
        return x[torch.arange(len(x)), ids.argmax(-1)] @ self.text_projection


class CustomTextClip(nn.Module):
    """OpenCLIP's second layout, with the text tower under `text`."""

    def __init__(self, activation="gelu"):
        super().__init__()
        self.visual = Visual(128, 3, 8, 32, activation)
        self.text = Text(64, 2, activation)
        self.logit_scale = nn.Parameter(torch.tensor(3.5))

    def forward(self, pixels, ids):
        return self.visual(pixels), self.text(ids)

    def flat_state(self):
        """OpenAI's layout, which is OpenCLIP's first: the text tower's tensors stand at the top."""
        return {name.removeprefix("text."): tensor for name, tensor in self.state_dict().items()}


def make_clip(activation="quick_gelu"):
    model = CustomTextClip(activation).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases start at ones and zeros, which hide mistakes
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.fixture
def batch():
    """Pixels, and ids as the original tokenizer gives them: begin 118, end 119, the rest 0."""
    ids = torch.zeros(3, CONTEXT, dtype=torch.long)
    for row, words in enumerate((10, 4, 0)):
        ids[row, : words + 2] = torch.cat([torch.tensor([118]), torch.randint(0, 118, (words,)), torch.tensor([119])])
    return torch.randn(3, 3, 32, 32), ids


def difference(original, model, pixels, ids, mask=None):
    """The largest difference in an embedding, after a check that embeddings are of size 1 and differ among inputs."""
    with torch.no_grad():
        ours = (
            model.get_image_features(pixels).pooler_output,
            model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output,
        )
    for theirs in original:
        assert theirs.abs().mean() > 0.05 and theirs.std(dim=0).mean() > 0.01
    return max((a - b).abs().max().item() for a, b in zip(original, ours, strict=True))


def load(path, **options):
    source = open_source(path, options.pop("kind", None))
    return source.kind, load_source(source, **options)


# The CLIP family


@pytest.mark.parametrize("kind", ["openai", "chexzero"])
def test_a_bare_state_dict_of_openai_and_of_chexzero(tmp_path, batch, kind, record_property):
    original = make_clip()
    name = CHEXZERO_FILE if kind == "chexzero" else "ViT.pt"
    torch.save(original.flat_state(), tmp_path / name)
    found, model = load(tmp_path / name, kind=None if kind == "chexzero" else kind)
    assert found == kind
    assert type(model) is TierCLIPModel and not model.training and model.dtype == torch.float32
    assert model.logit_scale.item() == original.logit_scale.item()
    with torch.no_grad():
        worst = difference(original(*batch), model, *batch)
    record_property("largest difference", worst)
    assert worst < TOLERANCE

    vision, text = model.config.vision_config, model.config.text_config
    assert (vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads) == (128, 3, 2)
    assert (vision.intermediate_size, vision.patch_size, vision.image_size) == (512, 8, 32)
    assert (text.hidden_size, text.num_hidden_layers, text.num_attention_heads) == (64, 2, 1)
    assert (text.vocab_size, text.max_position_embeddings, text.eos_token_id) == (VOCAB, CONTEXT, VOCAB - 1)
    assert vision.hidden_act == text.hidden_act == "quick_gelu" and model.config.projection_dim == DIM


def save_torchscript(model, path, batch):
    """As OpenAI's releases are: an archive in half precision with three numbers beside the weights."""
    for name, value in (("input_resolution", 32), ("context_length", CONTEXT), ("vocab_size", VOCAB)):
        model.register_buffer(name, torch.tensor(value))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    torch.jit.trace(model, batch, check_trace=False).save(path)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_torchscript_archive_of_openai(tmp_path, batch, record_property):
    original = FlatClip(make_clip())
    path = tmp_path / "ViT-B-32.pt"
    save_torchscript(original, path, batch)
    kind, model = load(path)
    assert kind == "openai"
    with torch.no_grad():
        worst = difference(original(*batch), model, *batch)
    record_property("largest difference", worst)
    assert worst < TOLERANCE


class FlatClip(nn.Module):
    """The model whose state dict has OpenAI's layout by itself."""

    def __init__(self, model):
        super().__init__()
        text = model.text
        self.visual, self.transformer = model.visual, text.transformer
        self.token_embedding, self.ln_final = text.token_embedding, text.ln_final
        self.positional_embedding, self.text_projection = text.positional_embedding, text.text_projection
        self.logit_scale = model.logit_scale

    def forward(self, pixels, ids):
        return self.visual(pixels), Text.forward(self, ids)


def test_half_precision_is_widened(tmp_path):
    state = {name: tensor.half() for name, tensor in make_clip().flat_state().items()}
    torch.save(state, tmp_path / CHEXZERO_FILE)
    model = load(tmp_path / CHEXZERO_FILE)[1]
    assert model.dtype == torch.float32
    assert torch.equal(model.visual_projection.weight, state["visual.proj"].t().float())


@pytest.mark.parametrize("layout", ["flat", "custom_text"])
@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
@pytest.mark.parametrize("container", ["bin", "safetensors", "training"])
def test_openclip(tmp_path, batch, layout, activation, container, record_property):
    original = make_clip(activation)
    state = original.flat_state() if layout == "flat" else original.state_dict()
    path = tmp_path / f"weights.{'bin' if container == 'training' else container}"
    if container == "safetensors":
        save_file(state, path)
    elif container == "training":
        torch.save({"epoch": 3, "name": "x", "state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    else:
        torch.save(state, path)
    kind, model = load(path, kind="openclip", activation=None if activation == "gelu" else activation)
    with torch.no_grad():
        worst = difference(original(*batch), model, *batch)
    record_property("largest difference", worst)
    assert kind == "openclip" and worst < TOLERANCE


def openclip_folder(folder, state, **changes):
    settings = {
        "embed_dim": DIM,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": 3, "width": 128, "patch_size": 8},
        "text_cfg": {"context_length": CONTEXT, "vocab_size": VOCAB, "width": 64, "heads": 1, "layers": 2},
    }
    for name, value in changes.items():
        part, _, key = name.partition("__")
        if key:
            settings[part][key] = value
        else:
            settings[part] = value
    folder.mkdir()
    save_file(state, folder / "open_clip_model.safetensors")
    (folder / OPENCLIP_CONFIG).write_text(json.dumps({"model_cfg": settings, "preprocess_cfg": {}}))
    return folder


def test_a_folder_of_openclip_tells_the_activation_and_the_heads(tmp_path, batch):
    original = make_clip("quick_gelu")
    folder = openclip_folder(tmp_path / "a", original.flat_state())
    assert open_source(folder).kind == open_source(folder / "open_clip_model.safetensors").kind == "openclip"
    with torch.no_grad():
        for path in (folder, folder / "open_clip_model.safetensors"):
            assert difference(original(*batch), load(path)[1], *batch) < TOLERANCE
    folder = openclip_folder(
        tmp_path / "b",
        original.flat_state(),
        quick_gelu=False,
        vision_cfg__head_width=32,
        text_cfg__heads=2,
        text_cfg__norm_kwargs={"eps": 1e-6},
        text_cfg__pool_type="argmax",
    )
    config = load(folder)[1].config
    assert config.vision_config.num_attention_heads == 4 and config.text_config.num_attention_heads == 2
    assert config.text_config.hidden_act == config.vision_config.hidden_act == "gelu"
    assert config.text_config.layer_norm_eps == 1e-6 and config.vision_config.layer_norm_eps == 1e-5
    folder = openclip_folder(tmp_path / "c", original.flat_state(), vision_cfg__head_width=None, text_cfg__heads=None)
    config = load(folder)[1].config  # null is the default
    assert config.vision_config.num_attention_heads == 2 and config.text_config.num_attention_heads == 8


@pytest.mark.parametrize("width, heads", [(768, 12), (1024, 16), (1280, 16), (1408, 16), (1664, 16), (1792, 16)])
def test_heads_of_the_large_openclip_models(width, heads):
    with torch.device("meta"):
        config = CLIPConfig(
            vision_config={"hidden_size": width, "num_hidden_layers": 1, "num_attention_heads": heads},
            text_config={"num_hidden_layers": 1},
        )
        tensors = to_layout(CLIPModel(config).state_dict(), clip_names(1, 1))
    source = Source(None, "openclip", tensors)
    assert clip_config(source, "", None).vision_config.num_attention_heads == heads


def test_clip_to_tier_to_openclip_and_back_is_exact(tmp_path, clip, batch):
    clip.save_pretrained(tmp_path / "clip")
    kind, tier = load(tmp_path / "clip")
    assert kind == "clip" and type(tier) is TierCLIPModel
    tensors, model_cfg = to_openclip(tier.to_clip())
    folder = tmp_path / "openclip"
    folder.mkdir()
    save_file(tensors, folder / "open_clip_model.safetensors")
    (folder / OPENCLIP_CONFIG).write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": {}}))
    kind, again = load(folder)
    assert kind == "openclip"
    assert list(again.state_dict()) == list(clip.state_dict())
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in clip.state_dict().items())
    ids = batch[1] % 97
    ids[:, -1] = 98
    for one, other in zip(clip(ids, batch[0])[:2], again(ids, batch[0])[:2], strict=True):
        assert torch.equal(one, other)
    for part in ("vision_config", "text_config"):
        before, after = getattr(clip.config, part).to_dict(), getattr(again.config, part).to_dict()
        ours = {"projection_dim", "dtype", "bos_token_id", "pad_token_id"}
        assert {k: v for k, v in after.items() if k not in ours} == {k: v for k, v in before.items() if k not in ours}


def test_what_openclip_has_not_is_refused(make_tier):
    with pytest.raises(ValueError, match="image_pooling"):
        to_openclip(make_tier(image_pooling="patch_mean").to_clip())
    model = make_tier().to_clip()
    model.config.text_config.eos_token_id = 5
    with pytest.raises(ValueError, match="highest token id, but this model ends a text with the token 5"):
        to_openclip(model)
    model = make_tier().to_clip()
    model.config.vision_config.hidden_act = "gelu"
    with pytest.raises(ValueError, match="gelu and quick_gelu"):
        to_openclip(model)


@pytest.mark.parametrize("hidden, inner", [(1664, 8192), (1408, 6144), (32, 37), (1792, 15360), (768, 3072)])
def test_openclip_rounds_the_mlp_ratio_to_the_same_width(hidden, inner):
    with torch.device("meta"):
        sizes = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": 1, "num_attention_heads": 2}
        model = CLIPModel(CLIPConfig(vision_config=sizes, text_config={"num_hidden_layers": 1}))
    assert int(hidden * to_openclip(model)[1]["vision_cfg"]["mlp_ratio"]) == inner


def test_a_clip_folder_in_half_precision_a_pickled_one_and_one_of_ours(tmp_path, clip, make_tier):
    clip.save_pretrained(tmp_path / "old")
    (tmp_path / "old" / "model.safetensors").unlink()
    position_ids = {"text_model.embeddings.position_ids": torch.arange(20)[None]}  # of transformers before 4.31
    torch.save(clip.state_dict() | position_ids, tmp_path / "old" / "pytorch_model.bin")
    state = load(tmp_path / "old")[1].state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in clip.state_dict().items())
    torch.save(argparse.Namespace(), tmp_path / "old" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot be loaded as a CLIP model: Weights only load failed"):
        load(tmp_path / "old")
    clip.half().save_pretrained(tmp_path / "half")
    assert load(tmp_path / "half")[1].dtype == torch.float32
    ours = make_tier(image_pooling="patch_mean", token_entropy_weight=0.2)
    ours.save_pretrained(tmp_path / "ours")
    kind, again = load(tmp_path / "ours")
    assert kind == "clip" and again.config.image_pooling == "patch_mean" and again.config.token_entropy_weight == 0.2


# TIER and BioViL: torchvision's ResNet, in functions of torch over a dict of tensors


def resnet_tensors(depths, base, prefix="", classes=10, make=torch.randn):
    """Random tensors under torchvision's names, in the shapes of its bottleneck ResNets (stride in the 3x3)."""
    tensors = {}

    def conv(name, out, inner, size):
        tensors[f"{name}.weight"] = make(out, inner, size, size) * (2 / (inner * size**2)) ** 0.5

    def norm(name, out):
        tensors[f"{name}.weight"] = 1 + 0.1 * make(out)
        tensors[f"{name}.bias"] = 0.1 * make(out)
        tensors[f"{name}.running_mean"] = 0.1 * make(out)
        tensors[f"{name}.running_var"] = 1 + 0.1 * make(out).abs()
        tensors[f"{name}.num_batches_tracked"] = torch.zeros((), dtype=torch.long, device=make(1).device)

    conv("conv1", base, 3, 7)
    norm("bn1", base)
    inner = base
    for stage, depth in enumerate(depths):
        planes = base * 2**stage
        for block in range(depth):
            at = f"layer{stage + 1}.{block}"
            for k, (out, before, size) in enumerate(
                ((planes, inner, 1), (planes, planes, 3), (4 * planes, planes, 1)), start=1
            ):
                conv(f"{at}.conv{k}", out, before, size)
                norm(f"{at}.bn{k}", out)
            if block == 0:
                conv(f"{at}.downsample.0", 4 * planes, inner, 1)
                norm(f"{at}.downsample.1", 4 * planes)
            inner = 4 * planes
    tensors["fc.weight"], tensors["fc.bias"] = make(classes, inner), make(classes)
    return {prefix + name: tensor for name, tensor in tensors.items()}


def resnet_forward(t, pixels, depths):
    def norm(x, name):
        return F.batch_norm(
            x, t[f"{name}.running_mean"], t[f"{name}.running_var"], t[f"{name}.weight"], t[f"{name}.bias"]
        )

    x = F.max_pool2d(F.relu(norm(F.conv2d(pixels, t["conv1.weight"], stride=2, padding=3), "bn1")), 3, 2, 1)
    for stage, depth in enumerate(depths):
        for block in range(depth):
            at, stride = f"layer{stage + 1}.{block}", 2 if block == 0 and stage > 0 else 1
            y = F.relu(norm(F.conv2d(x, t[f"{at}.conv1.weight"]), f"{at}.bn1"))
            y = F.relu(norm(F.conv2d(y, t[f"{at}.conv2.weight"], stride=stride, padding=1), f"{at}.bn2"))
            y = norm(F.conv2d(y, t[f"{at}.conv3.weight"]), f"{at}.bn3")
            if block == 0:
                x = norm(F.conv2d(x, t[f"{at}.downsample.0.weight"], stride=stride), f"{at}.downsample.1")
            x = F.relu(x + y)
    return x


DEPTHS, BASE, HEAD = (1, 2, 1, 1), 8, 16


def projector_tensors(prefix=""):
    tensors = {
        "0.weight": torch.randn(HEAD, 32 * BASE, 1, 1) * (32 * BASE) ** -0.5,
        "1.weight": 1 + 0.1 * torch.randn(HEAD),
        "1.bias": 0.1 * torch.randn(HEAD),
        "1.running_mean": 0.1 * torch.randn(HEAD),
        "1.running_var": 1 + 0.1 * torch.rand(HEAD),
        "1.num_batches_tracked": torch.tensor(7),
        "3.weight": torch.randn(HEAD, HEAD, 1, 1) * HEAD**-0.5,
        "3.bias": 0.1 * torch.randn(HEAD),
    }
    return {f"{prefix}projector.model.{name}": tensor for name, tensor in tensors.items()}


def project_image(tensors, features):
    t = {name.rpartition("model.")[2]: tensor for name, tensor in tensors.items()}
    x = F.conv2d(features, t["0.weight"])
    x = F.relu(F.batch_norm(x, t["1.running_mean"], t["1.running_var"], t["1.weight"], t["1.bias"]))
    return F.conv2d(x, t["3.weight"], t["3.bias"])


class CxrBert(BertForMaskedLM):
    """CXR-BERT: BERT for masked words, and a head for [CLS]."""

    def __init__(self, config):
        super().__init__(config)
        self.cls_projection_head = nn.ModuleDict(
            {
                "dense_to_hidden": nn.Linear(config.hidden_size, HEAD),
                "LayerNorm": nn.LayerNorm(HEAD, eps=1e-12),
                "dense_to_output": nn.Linear(HEAD, HEAD),
            }
        )
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))

    def embed(self, ids, mask):
        head = self.cls_projection_head
        x = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state
        return head["dense_to_output"](head["LayerNorm"](F.gelu(head["dense_to_hidden"](x))))


@pytest.fixture
def cxr_bert():
    return CxrBert(
        BertConfig(
            vocab_size=90,
            hidden_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=96,
            max_position_embeddings=40,
        )
    ).eval()


def text_state(cxr_bert):
    state = {name: tensor.clone() for name, tensor in cxr_bert.state_dict().items()}
    state["bert.embeddings.position_ids"] = torch.arange(40)[None]  # as transformers before 4.31 saved it
    return state


@pytest.fixture
def tier_state(cxr_bert):
    """`model_state_dict` of TIER's MedCLIP: CNN, CXR-BERT, its head once more, and the logit scale."""
    state = resnet_tensors(DEPTHS, BASE, "cnn.encoder.encoder.") | projector_tensors("cnn.")
    state |= {f"transformer.{name}": tensor for name, tensor in text_state(cxr_bert).items()}
    state |= {k: v.clone() for k, v in cxr_bert.state_dict().items() if k.startswith("cls_projection_head")}
    return state | {"logit_scale": torch.tensor(2.9)}


@pytest.fixture
def dual_batch():
    ids = torch.randint(5, 90, (3, 9))
    mask = (torch.arange(9) < torch.tensor([[9], [5], [2]])).long()
    return torch.randn(3, 3, 96, 96), ids * mask, mask


def tier_checkpoint(state):
    """What TIER's train.py saves every epoch, with arguments and numbers of numpy in it."""
    return {
        "epoch": 4,
        "model_state_dict": state,
        "optimizer_state_dict": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-4}]},
        "best_val_loss": 1.5,
        "val_loss": 1.5,
        "train_loss": np.float32(1.25),
        "train_losses": np.array(1.0),
        "args": argparse.Namespace(lam_words=0.1, lam_patches=0.0, model_path="/x"),
    }


def check_dual(model, image_tensors, prefix, cxr_bert, dual_batch):
    """The largest difference of global, patch and token embeddings."""
    pixels, ids, mask = dual_batch
    trunk = f"{prefix}encoder.encoder."
    resnet = {k.removeprefix(trunk): v for k, v in image_tensors.items() if k.startswith(trunk)}
    projector = {k: v for k, v in image_tensors.items() if "projector" in k}
    with torch.no_grad():
        patches = project_image(projector, resnet_forward(resnet, pixels, DEPTHS))  # (batch, dim, rows, columns)
        tokens = cxr_bert.embed(ids, mask)
        ours = model.get_patch_features(pixels)
        assert patches.shape == (3, HEAD, 3, 3) and ours.shape == (3, 9, HEAD)
        local = (patches.flatten(2).transpose(1, 2) - ours).abs().max().item()
        hidden = model.get_text_features(input_ids=ids, attention_mask=mask).last_hidden_state
        local = max(local, ((model.text_projection(hidden) - tokens) * mask[..., None]).abs().max().item())
    return max(local, difference((patches.mean((2, 3)), tokens[:, 0]), model, pixels, ids, mask))


def test_tier(tmp_path, tier_state, cxr_bert, dual_batch, record_property):
    path = tmp_path / "best_model.pt"
    torch.save(tier_checkpoint(tier_state), path)
    kind, model = load(path)
    assert kind == "tier" and type(model) is TierDualEncoderModel and not model.training
    worst = check_dual(model, tier_state, "cnn.", cxr_bert, dual_batch)
    record_property("largest difference", worst)
    assert worst < TOLERANCE
    assert model.logit_scale.item() == pytest.approx(2.9)
    assert model.config.image_size == 224 and model.config.image_pooling == "patch_mean"
    assert model.config.projection_dim == HEAD and model.config.frozen_text_layers == 2
    assert model.visual_projection[1].num_batches_tracked == 7


def test_the_weights_of_tier_become_those_of_the_config(tmp_path, tier_state, dual_batch):
    """Each multiplies the entropy that it multiplies in the authors' code, whose comment says the opposite."""
    checkpoint = tier_checkpoint(tier_state)
    checkpoint["args"] = argparse.Namespace(lam_words=0.125, lam_patches=0.5, model_path="/x")
    torch.save(checkpoint, tmp_path / "best_model.pt")
    model = load(tmp_path / "best_model.pt")[1]
    assert (model.config.token_entropy_weight, model.config.patch_entropy_weight) == (0.125, 0.5)
    pixels, ids, mask = dual_batch
    with torch.no_grad():
        outputs = model(pixel_values=pixels, input_ids=ids, attention_mask=mask, return_loss=True)
    similarity = outputs.token_embeds @ outputs.patch_embeds.transpose(1, 2)  # (pairs, tokens, patches)
    words, patches = (similarity.softmax(dim).clamp(min=1e-7) for dim in (2, 1))
    penalty = 0.125 * -(words * words.log()).sum(2).mean() + 0.5 * -(patches * patches.log()).sum(1).mean()
    assert (outputs.loss - outputs.contrastive_loss).item() == pytest.approx(penalty.item(), abs=1e-4)

    del checkpoint["args"]
    torch.save(checkpoint, tmp_path / "without.pt")
    config = load(tmp_path / "without.pt")[1].config
    assert (config.token_entropy_weight, config.patch_entropy_weight) == (0.0, 0.0)
    assert config.entropy_tokens == "words"
    for value in (-1.0, float("nan"), "0.1", True):
        checkpoint["args"] = argparse.Namespace(lam_words=value)
        torch.save(checkpoint, tmp_path / "bad.pt")
        with pytest.raises(ValueError, match="lam_words=.*, not a number of at least 0"):
            load(tmp_path / "bad.pt")


@pytest.fixture
def biovil(tmp_path, cxr_bert):
    """BioViL's image file, its tensors, and the folder of CXR-BERT."""
    state = resnet_tensors(DEPTHS, BASE, "encoder.encoder.") | projector_tensors()
    torch.save(state, tmp_path / "biovil_image_resnet50_proj_size_128.pt")
    folder = tmp_path / "cxr_bert"
    folder.mkdir()
    torch.save(text_state(cxr_bert), folder / "pytorch_model.bin")
    settings = cxr_bert.config.to_dict()
    settings |= {
        "model_type": "cxr-bert",
        "projection_size": HEAD,
        "architectures": ["CXRBertModel"],
        "auto_map": {"AutoModel": "modeling_cxrbert.CXRBertModel"},
    }
    (folder / "config.json").write_text(json.dumps(settings, default=str))
    return tmp_path / "biovil_image_resnet50_proj_size_128.pt", state, folder


def test_biovil_with_cxr_bert_beside_it(biovil, cxr_bert, dual_batch, record_property):
    path, state, folder = biovil
    kind, model = load(path, text_folder=folder)
    worst = check_dual(model, state, "", cxr_bert, dual_batch)
    record_property("largest difference", worst)
    assert kind == "biovil" and worst < TOLERANCE
    assert model.config.image_size == 480
    assert model.logit_scale.item() == pytest.approx(math.log(1 / 0.07))  # in neither file
    save_file(text_state(cxr_bert), folder / "model.safetensors")
    (folder / "pytorch_model.bin").unlink()
    again = load(path, text_folder=folder)[1]
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_layouts_invert_each_other(make_tier, tier_state, tmp_path):
    state = make_tier().state_dict()
    names = clip_names(2, 2, "text.")
    again = from_layout(to_layout(state, names), names)
    assert again.keys() == state.keys() and all(torch.equal(again[name], state[name]) for name in state)
    torch.save(tier_checkpoint(tier_state), tmp_path / "best_model.pt")
    state = load(tmp_path / "best_model.pt")[1].state_dict()
    back = to_layout(state, {"logit_scale": ("logit_scale",), **dual_names(list(state), "cnn.", "transformer.")})
    assert all(torch.equal(tensor, tier_state[name]) for name, tensor in back.items())


# The published sizes, without memory


def chexzero_shapes(dim, image, patch):
    """The tensors of the two CheXzero models: 12 layers, width 768 and 512, 77 tokens of 49408."""
    shapes = {
        "positional_embedding": (77, 512),
        "text_projection": (512, dim),
        "logit_scale": (),
        "visual.class_embedding": (768,),
        "visual.positional_embedding": ((image // patch) ** 2 + 1, 768),
        "visual.proj": (768, dim),
        "visual.conv1.weight": (768, 3, patch, patch),
        "token_embedding.weight": (49408, 512),
    }
    norms = {"visual.ln_pre": 768, "visual.ln_post": 768, "ln_final": 512}
    for tower, width in (("visual.transformer", 768), ("transformer", 512)):
        for i in range(12):
            at = f"{tower}.resblocks.{i}"
            norms |= {f"{at}.ln_1": width, f"{at}.ln_2": width}
            shapes |= {f"{at}.attn.in_proj_weight": (3 * width, width), f"{at}.attn.in_proj_bias": (3 * width,)}
            for name, out, inner in (
                ("attn.out_proj", width, width),
                ("mlp.c_fc", 4 * width, width),
                ("mlp.c_proj", width, 4 * width),
            ):
                shapes |= {f"{at}.{name}.weight": (out, inner), f"{at}.{name}.bias": (out,)}
    for name, width in norms.items():
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    return shapes


@pytest.mark.parametrize("dim, image, patch, count", [(512, 224, 32, 151_277_313), (768, 320, 16, None)])
def test_the_published_sizes_of_chexzero(dim, image, patch, count):
    shapes = chexzero_shapes(dim, image, patch)
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    assert detect_kind("weights.pt", tensors, "bare", False) == ("chexzero" if image == 320 else None)
    assert detect_kind(CHEXZERO_FILE, tensors, "bare", False) == "chexzero"
    config = clip_config(Source(None, "chexzero", tensors), "", None)
    assert (config.vision_config.image_size, config.vision_config.patch_size) == (image, patch)
    assert (config.vision_config.num_attention_heads, config.text_config.num_attention_heads) == (12, 8)
    assert (config.text_config.bos_token_id, config.text_config.eos_token_id) == (49406, 49407)
    with torch.device("meta"):
        model = TierCLIPModel(config)
    expected = to_layout(model.state_dict(), clip_names(12, 12))
    assert {name: tuple(tensor.shape) for name, tensor in expected.items()} == shapes
    assert len(shapes) == 302
    if count:
        assert model.num_parameters() == count


def test_the_published_sizes_of_biovil():
    with torch.device("meta"):
        tensors = resnet_tensors((3, 4, 6, 3), 64, "encoder.encoder.", 1000, torch.empty)
        config = resnet_config(tensors, "encoder.encoder.")
        model = TierDualEncoderModel(TierDualEncoderConfig(vision_config=config))
    assert (
        sum(t.numel() for name, t in tensors.items() if "running" not in name and "batches" not in name) == 25_557_032
    )
    own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("vision_model.")}
    expected = to_layout(own, dual_names(list(own), "", ""))
    trunk = {name: tensor for name, tensor in tensors.items() if ".fc." not in name}
    assert {n: t.shape for n, t in expected.items()} == {n: t.shape for n, t in trunk.items()}
    assert (config.depths, config.hidden_sizes) == ([3, 4, 6, 3], [256, 512, 1024, 2048])


# What is refused


def saved(path, state):
    torch.save(state, path)
    return path


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop("visual.ln_post.bias"), "lacks tensors: visual.ln_post.bias"),
        (lambda s: s.pop("visual.proj"), "lacks tensors: visual.proj"),
        (lambda s: s.pop("text_projection"), "lacks tensors: text_projection"),
        (
            lambda s: s.pop("transformer.resblocks.0.mlp.c_fc.weight"),
            "lacks tensors: transformer.resblocks.0.mlp.c_fc",
        ),
        (lambda s: s.update(logit_bias=torch.zeros(())), "has unknown tensors: logit_bias"),
        (lambda s: s.update({"visual.extra": torch.zeros(2)}), "has unknown tensors: visual.extra"),
        (lambda s: s.update({"visual.proj": torch.zeros(64, DIM)}), "visual.proj .* has the shape .64, 48."),
        (lambda s: s.update({"visual.positional_embedding": torch.zeros(16, 128)}), "has 16 positions"),
        (lambda s: s.update({"visual.positional_embedding": torch.zeros(16)}), "not one of 2 dimensions"),
        (
            lambda s: s.update({"ln_final.bias": torch.zeros(64, dtype=torch.int8)}),
            "ln_final.bias .* holds torch.int8",
        ),
        (
            lambda s: s.update({k.replace("blocks.2", "blocks.7"): s.pop(k) for k in list(s) if "blocks.2" in k}),
            "lacks tensors: visual.transformer.resblocks.2",
        ),
        (lambda s: s.update({"visual.layer1.0.conv1.weight": torch.zeros(2)}), "with a ResNet as image tower"),
    ],
)
def test_missing_extra_and_wrong_tensors_are_named(tmp_path, change, message):
    state = make_clip().flat_state()
    change(state)
    with pytest.raises(ValueError, match=message):
        load(saved(tmp_path / CHEXZERO_FILE, state))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop("cnn.projector.model.3.bias"), "lacks tensors: cnn.projector.model.3.bias"),
        (lambda s: s.pop("logit_scale"), "lacks tensors: logit_scale"),
        (
            lambda s: s.update({"cnn.classifier.fc_0.model.0.weight": torch.zeros(2)}),
            "unknown tensors: cnn.classifier",
        ),
        (lambda s: s["cls_projection_head.LayerNorm.bias"].add_(1), "cls_projection_head.LayerNorm.bias .* differ"),
        (
            lambda s: s.update({"cnn.encoder.encoder.layer2.1.bn2.bias": torch.zeros(5)}),
            "layer2.1.bn2.bias .* has the shape .5,.",
        ),
    ],
)
def test_missing_extra_and_wrong_tensors_of_tier_are_named(tmp_path, tier_state, change, message):
    change(tier_state)
    with pytest.raises(ValueError, match=message):
        load(saved(tmp_path / "best_model.pt", tier_checkpoint(tier_state)))


def test_biovil_needs_cxr_bert(biovil, tmp_path, cxr_bert):
    path, _, folder = biovil
    with pytest.raises(ValueError, match="--text_model"):
        load(path)
    with pytest.raises(ValueError, match="no folder with the config.json"):
        load(path, text_folder=tmp_path)
    state = text_state(cxr_bert)
    del state["cls_projection_head.LayerNorm.weight"]
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="lacks tensors: cls_projection_head.LayerNorm.weight"):
        load(path, text_folder=folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="'bert', not 'cxr-bert'"):
        load(path, text_folder=folder)


def test_kinds_that_cannot_be_told_apart_are_asked_for(tmp_path):
    path = saved(tmp_path / "checkpoint.pt", make_clip().flat_state())
    with pytest.raises(ValueError, match="--kind openai, --kind chexzero or --kind openclip"):
        open_source(path)
    assert open_source(path, "chexzero").kind == "chexzero"
    with pytest.raises(ValueError, match="kind openai or chexzero or openclip, not tier"):
        open_source(path, "tier")
    with pytest.raises(ValueError, match="leave --activation out"):
        load(path, kind="openai", activation="gelu")
    with pytest.raises(ValueError, match="--text_model does not apply"):
        load(path, kind="openai", text_folder=tmp_path)


def test_other_architectures_and_wrong_folders(tmp_path, clip):
    with pytest.raises(ValueError, match="no file or folder"):
        open_source(tmp_path / "absent.pt")
    with pytest.raises(ValueError, match="its first tensors are called a, b"):
        open_source(saved(tmp_path / "a.pt", {"a": torch.zeros(2), "b": torch.zeros(2)}))
    with pytest.raises(ValueError, match="holds no model"):
        open_source(tmp_path)
    clip.save_pretrained(tmp_path / "clip")
    with pytest.raises(ValueError, match="name its folder instead"):
        open_source(tmp_path / "clip" / "model.safetensors")
    vit = ViTModel(ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8))
    vit.save_pretrained(tmp_path / "vit")
    with pytest.raises(ValueError, match="type 'vit', not a CLIP model"):
        open_source(tmp_path / "vit")
    with pytest.raises(ValueError, match="of the kind 'clip', not 'openai'"):
        open_source(tmp_path / "clip", "openai")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop("visual_projection.weight"), "lacks tensors: visual_projection.weight"),
        (lambda s: s.update(surplus=torch.zeros(2)), "has unknown tensors: surplus"),
        (lambda s: s.update({"text_projection.weight": torch.zeros(3, 3)}), "other shapes .* text_projection.weight"),
    ],
)
def test_clip_folders_that_do_not_fit(tmp_path, clip, change, message):
    clip.save_pretrained(tmp_path)
    state = {name: tensor.clone() for name, tensor in clip.state_dict().items()}
    change(state)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"text_cfg__pool_type": "last"}, "pool_type='last'"),
        ({"text_cfg__no_causal_mask": True}, "no_causal_mask=True"),
        ({"vision_cfg__timm_model_name": "resnet50"}, "with the image tower resnet50 of timm"),
        ({"vision_cfg__head_width": "64"}, "head_width='64'"),
        ({"text_cfg__norm_kwargs": {"eps": 1e-6, "bias": False}}, "norm_kwargs="),
        ({"text_cfg": None}, "lacks a model_cfg with a vision_cfg and a text_cfg"),
        ({"text_cfg__heads": 5}, "64 cannot be divided among 5 heads"),
        ({"vision_cfg__head_width": 256}, "128 cannot be divided among 0 heads"),
    ],
)
def test_settings_of_openclip_that_clip_has_not(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        load(openclip_folder(tmp_path / "a", make_clip().flat_state(), **changes))


def test_a_truncated_clip_folder(tmp_path, clip):
    clip.save_pretrained(tmp_path)
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:-100])
    with pytest.raises(ValueError, match="cannot be loaded as a CLIP model"):
        load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="cannot be loaded as a CLIP model"):
        load(tmp_path)


def test_no_tensor_of_the_configuration_is_left_as_it_was_made(tmp_path):
    """Every parameter comes from the file: two models made under different seeds are equal."""
    path = saved(tmp_path / CHEXZERO_FILE, make_clip().flat_state())
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append(load(path)[1].state_dict())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    assert isinstance(load(path)[1].config, TierCLIPConfig)
