"""OpenAI's and OpenCLIP's CLIP in plain torch, written here: the names of the parameters are the layout."""

import json

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

VOCAB, CONTEXT, DIM = 120, 12, 48
CHEXZERO_FILE = "best_64_5e-05_original_22000_0.864.pt"  # a released name
OPENCLIP_CONFIG = "open_clip_config.json"


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


def save_torchscript(model, path, batch):
    """As OpenAI's releases are: an archive in half precision with three numbers beside the weights."""
    for name, value in (("input_resolution", 32), ("context_length", CONTEXT), ("vocab_size", VOCAB)):
        model.register_buffer(name, torch.tensor(value))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    torch.jit.trace(model, batch, check_trace=False).save(path)


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
