"""Where the patches of each backbone look: against the pixels that move a patch, and against a bright pixel."""

import pytest
import torch
from dual_towers import RESNET, VIT, vision_config
from torch import nn

from modeling_tier.maps_tier import similarity_map
from modeling_tier.patch_centers_tier import trace_patch_centers
from processing_tier import TierImageProcessor

SIDE = 448
FOUR = {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]}
SWIN = {"model_type": "swin", "embed_dim": 8, "num_heads": [2, 2, 2, 2], "window_size": 7, "image_size": SIDE}
CONVOLUTIONAL = {  # the configuration, and the first centre and the step by hand
    "resnet 1": ({**RESNET, "hidden_sizes": [8], "depths": [1]}, (0.5, 4)),
    "resnet 2": (RESNET, (0.5, 8)),
    "resnet 3": ({**RESNET, "hidden_sizes": [8, 8, 8], "depths": [1, 1, 1]}, (0.5, 16)),
    "resnet 4": ({**RESNET, **FOUR}, (0.5, 32)),
    "resnet, all stages halve": ({**RESNET, "downsample_in_first_stage": True}, (0.5, 16)),
    "resnet, bottlenecks": ({**RESNET, **FOUR, "layer_type": "bottleneck"}, (0.5, 32)),
    "resnet, first convolution": ({**RESNET, "layer_type": "bottleneck", "downsample_in_bottleneck": True}, (0.5, 8)),
    "regnet": ({"model_type": "regnet", "layer_type": "x", "embedding_size": 8, "groups_width": 8, **FOUR}, (0.5, 32)),
    "convnext": ({"model_type": "convnext", **FOUR}, (16, 32)),
}
OTHERS = {
    "vit": ({**vision_config("vit"), "image_size": 224}, 224, (8, 16)),
    "vit, 10 pixels left over": ({**vision_config("vit"), "patch_size": 18, "image_size": 64}, 64, (9, 18)),
    "deit": (vision_config("deit"), 64, (8, 16)),
    "dinov2": ({**VIT, "model_type": "dinov2", "mlp_ratio": 1, "patch_size": 14}, 70, (7, 14)),
    "clip": (vision_config("clip_vision_model"), 64, (8, 16)),
    "swin": ({**SWIN, "depths": [1, 1, 1, 1]}, 448, (16, 32)),
    "swin, padded to 8 x 8 patches": (
        {**SWIN, "depths": [1, 1, 1, 1], "image_size": 112, "window_size": 4},
        112,
        (16, 32),
    ),
    "resnet of an odd size": (RESNET, 61, (0.5, 8)),
    "segformer": (
        {"model_type": "segformer", "hidden_sizes": [8] * 4, "depths": [1] * 4, "num_attention_heads": [1] * 4},
        224,
        (0.5, 32),
    ),
}


def make_positive(model: nn.Module) -> None:
    """All weights equal and positive, and windows that average: then each patch is a positive sum of what it sees."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            nn.init.ones_(module.weight)
        elif isinstance(module, nn.Linear):
            nn.init.constant_(module.weight, 0.1)
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_a_patch_sees_as_far_to_either_side_of_its_centre(make_dual, name):
    config, expected = CONVOLUTIONAL[name]
    model = make_dual(config, image_size=SIDE)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    model.vision_model.train()
    assert model.patch_centers == expected
    assert model.vision_model.training and not model.training
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())

    model.eval()
    make_positive(model.vision_model)
    for module in model.vision_model.modules():
        for key, child in module.named_children():
            if isinstance(child, nn.MaxPool2d):  # which would look at the first of equal pixels only
                setattr(module, key, nn.AvgPool2d(child.kernel_size, child.stride, child.padding))
            elif "LayerNorm" in type(child).__name__:
                setattr(module, key, nn.Identity())  # it looks at one place
    first, step = expected
    pixels = torch.ones(1, 3, SIDE, SIDE, dtype=torch.float64, requires_grad=True)
    features = model.vision_model.double()(pixels, return_dict=True).last_hidden_state
    row, column = features.shape[-2] // 2, features.shape[-1] // 2 - 1
    features[0, :, row, column].sum().backward()
    weight = pixels.grad[0].sum(dim=0)
    places = torch.arange(SIDE) + 0.5
    for patch, seen in ((row, weight.sum(dim=1)), (column, weight.sum(dim=0))):
        touched = places[seen > 0]
        assert 0.5 < touched.min() and touched.max() < SIDE - 0.5  # the border cuts nothing off
        assert (seen @ places.double() / seen.sum()).item() == pytest.approx(first + step * patch, abs=1e-6)
        assert (touched.min() + touched.max()).item() / 2 == first + step * patch


@pytest.mark.parametrize("name", OTHERS)
def test_patches_of_towers_with_attention(make_dual, name):
    config, size, expected = OTHERS[name]
    model = make_dual(config, image_size=size)
    with torch.inference_mode():
        assert model.patch_centers == expected


def test_patches_of_clip(make_tier):
    assert make_tier().patch_centers == (4, 8)


class Layers(nn.Sequential):
    device = torch.device("cpu")

    def encode_images(self, pixels):
        return None, self(pixels.double()).movedim(1, -1)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        # the padding of TensorFlow: nothing before the first pixel, so its window begins there
        ([nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(1, 1, 3, stride=2)], (1.5, 2)),
        ([nn.ReflectionPad2d(1), nn.Conv2d(1, 1, 3, stride=2)], (0.5, 2)),
        ([nn.Conv2d(1, 1, 4, stride=4), nn.Conv2d(1, 1, 3, padding="same")], (2, 4)),
        ([nn.Conv2d(1, 1, 3, stride=2, padding=2, dilation=2), nn.AvgPool2d(2)], (1.5, 4)),
        ([nn.PixelUnshuffle(4)], (2, 4)),  # joins pixels without a window
        ([nn.AdaptiveAvgPool2d(5)], (6.4, 12.8)),  # cannot be told
    ],
)
def test_layers(layers, expected):
    model = Layers(*layers).double()
    if not isinstance(layers[0], (nn.PixelUnshuffle, nn.AdaptiveAvgPool2d)):
        make_positive(model)
        pixels = torch.ones(1, 1, 64, 64, dtype=torch.float64, requires_grad=True)
        model(pixels)[0, 0, 3, 3].backward()
        seen = pixels.grad[0, 0].sum(dim=0)
        centre = seen @ (torch.arange(64.0) + 0.5).double() / seen.sum()
        assert centre.item() == pytest.approx(expected[0] + 3 * expected[1])
    assert trace_patch_centers(model, 64) == pytest.approx(expected)


@pytest.mark.parametrize("geometry", ["pad", "crop", "squash"])
@pytest.mark.parametrize("backbone", ["resnet", "convnext"])
def test_the_peak_lies_at_the_bright_place(make_dual, backbone, geometry):
    """A ResNet and a ConvNeXt that blur, on a black picture with one bright place, which need not be square."""
    model = make_dual(vision_config(backbone)).eval()
    make_positive(model.vision_model)
    for module in model.vision_model.modules():
        for key, child in module.named_children():
            if "LayerNorm" in type(child).__name__:
                setattr(module, key, nn.Identity())
    text = torch.ones(16) / 4
    processor = TierImageProcessor(size=64, geometry=geometry, resample=2)
    height, width = 128, 192
    for row, column in ((40, 80), (64, 96), (88, 112), (72, 128)):
        picture = torch.zeros(1, height, width, dtype=torch.uint8)
        picture[:, row - 4 : row + 4, column - 4 : column + 4] = 255
        pixels = processor(picture.numpy(), do_normalize=False, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            features = model.vision_model(pixels).last_hidden_state.movedim(1, -1)  # (1, rows, columns, hidden)
        maps = similarity_map(text, features - features.min(), "contribution")
        (heat,) = processor.post_process_similarity_map(maps, [(height, width)], model.patch_centers)
        heat = heat.nan_to_num(0)
        heat = (heat - 0.5 * heat.max()).clamp(min=0)  # the hottest part
        place = [
            (heat.sum(dim=1 - axis) @ (torch.arange(heat.shape[axis]) + 0.5) / heat.sum()).item() for axis in (0, 1)
        ]
        assert place == pytest.approx([row, column], abs=4.8)  # half a patch is 8 pixels of the picture, or more
