import math

import pytest
import torch
from transformers import ConvNextConfig, ConvNextModel, SwinConfig, SwinModel

from modeling_tier import TierCLIPModel, TierDualEncoderModel
from modeling_tier.towers_tier import freeze_layers, layer_depths
from training_tier.loop.contrastive import TierTrainer
from training_tier.loop.learning_rates import learning_rate_scales
from training_tier.options.model import ModelArguments
from training_tier.options.task import TaskArguments
from training_tier.options.training import TierTrainingArguments
from training_tier.start.freezing import freeze_towers
from training_tier.start.presets import PRESETS, preset_config


@pytest.fixture
def make_model(monkeypatch, processor):
    """Function that makes a CLIP or dual model of three layers in each tower (of two stages, where convolutional)."""

    def make(kind: str, **options):
        torch.manual_seed(0)
        name = {"clip": "tiniest", "dual": "tiniest-dual"}[kind]
        preset = {key: dict(value) if isinstance(value, dict) else value for key, value in PRESETS[name].items()}
        preset["text_config"]["num_hidden_layers"] = 3
        if kind == "clip":
            preset["vision_config"]["num_hidden_layers"] = 3
        monkeypatch.setitem(PRESETS, name, preset)
        model_class = {"clip": TierCLIPModel, "dual": TierDualEncoderModel}[kind]
        return model_class(preset_config(name, processor.tokenizer, **options))

    return make


@pytest.fixture
def make_optimizer(tmp_path):
    """Function that gives the name, learning rate and decay of every parameter of a model's optimizer."""

    def make(model, **options) -> dict[str, tuple[float, float]]:
        arguments = TierTrainingArguments(
            output_dir=str(tmp_path),
            learning_rate=0.01,
            weight_decay=0.2,
            eval_strategy="no",
            load_best_model_at_end=False,
            use_cpu=True,
            report_to="none",
            **options,
        )
        trainer = TierTrainer(model=model, args=arguments)
        groups = trainer.create_optimizer().param_groups
        assert len(groups) == 2 or options
        assert len({id(p) for group in groups for p in group["params"]}) == sum(len(g["params"]) for g in groups)
        trainer.create_scheduler(100)
        assert [group["initial_lr"] for group in groups][0] == 0.01  # the one that is logged
        names = {parameter: name for name, parameter in model.named_parameters()}
        return {names[p]: (g["initial_lr"], g["weight_decay"]) for g in groups for p in g["params"]}

    return make


def expected_depth(name: str, layers: int) -> int | None:
    """How many layers lie above a parameter of a tower, and above the towers' own last ones."""
    parts = name.split(".")
    if parts[0] not in ("vision_model", "text_model"):
        return None
    for word in ("stages", "layers", "layer"):
        if word in parts:
            return layers - int(parts[parts.index(word) + 1])
    before = ("embeddings", "pre_layrnorm", "embedder")
    return layers + 1 if any(part in before for part in parts) else 0


@pytest.mark.parametrize("kind", ["clip", "dual"])
def test_every_parameter_has_its_learning_rate_and_decay(kind, make_model, make_optimizer):
    model = make_model(kind)
    groups = make_optimizer(model, vision_lr_scale=0.5, text_lr_scale=0.1, layer_decay=0.8)
    assert set(groups) == {name for name, _ in model.named_parameters()}
    for name, (rate, decay) in groups.items():
        tower = name.split(".")[0]
        above = expected_depth(name, layers=2 if kind == "dual" and tower == "vision_model" else 3)
        scale = {"vision_model": 0.5, "text_model": 0.1}.get(tower, 1.0)
        assert rate == pytest.approx(0.01 * scale * 0.8 ** (above or 0), rel=1e-12), name
        is_table = "embedding" in name and "patch_embedding" not in name
        assert decay == (0.2 if model.get_parameter(name).ndim > 1 and not is_table else 0.0), name
    assert groups["logit_scale"] == (0.01, 0.0)
    if kind == "clip":
        assert groups["vision_model.encoder.layers.2.mlp.fc1.weight"] == (pytest.approx(0.004), 0.2)
        assert groups["vision_model.embeddings.class_embedding"] == (pytest.approx(0.005 * 0.8**4), 0.0)
        assert groups["vision_model.post_layernorm.weight"] == (pytest.approx(0.005), 0.0)


def test_without_options_the_groups_are_the_trainers(make_model, make_optimizer):
    assert set(make_optimizer(make_model("clip")).values()) == {(0.01, 0.2), (0.01, 0.0)}


@pytest.mark.parametrize(
    ("tower", "stages"),
    [
        (SwinModel(SwinConfig(embed_dim=8, depths=[1, 1], num_heads=[1, 1], image_size=32, window_size=4)), 2),
        (ConvNextModel(ConvNextConfig(hidden_sizes=[4, 8, 8], depths=[1, 1, 1], num_stages=3)), 3),
    ],
)
def test_stages_are_the_layers_of_a_hierarchical_backbone(tower, stages):
    depths = {name: layer_depths(tower)[parameter] for name, parameter in tower.named_parameters()}
    assert set(depths.values()) == {0, *range(1, stages + 1), math.inf}
    assert all(depth == 0 for name, depth in depths.items() if name.startswith("embeddings"))
    assert depths["layernorm.weight"] == math.inf


def test_frozen_parts_do_not_move_and_their_heads_do(make_model):
    cases = [
        ("clip", {"freeze_image_tower": True}, {}, ("vision_model.",)),
        ("clip", {"freeze_text_tower": True}, {}, ("text_model.",)),
        ("dual", {"freeze_image_tower": True, "freeze_text_tower": True}, {}, ("vision_model.", "text_model.")),
        (
            "clip",
            {},
            {"frozen_vision_layers": 1, "frozen_text_layers": 2},
            tuple(f"vision_model.{name}" for name in ("embeddings.", "pre_layrnorm.", "encoder.layers.0."))
            + tuple(f"text_model.{name}" for name in ("embeddings.", "encoder.layers.0.", "encoder.layers.1.")),
        ),
        ("dual", {}, {"frozen_vision_layers": 1}, ("vision_model.embedder.", "vision_model.encoder.stages.0.")),
    ]
    for kind, task, options, prefixes in cases:
        model = make_model(kind)
        model.config.token_entropy_weight = 0.1
        freeze_towers(model, TaskArguments(**task), ModelArguments(model="owner/pretrained", **options))
        model.train()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        ids = torch.randint(5, 90, (4, 9))
        ids[:, 0], ids[:, -1] = model.config.text_config.bos_token_id, model.config.text_config.eos_token_id
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.rand(4, 3, 32, 32)}
        model(**batch, return_loss=True).loss.backward()
        optimizer.step()
        unchanged = {name for name, tensor in model.state_dict().items() if torch.equal(tensor, before[name])}
        trained = {name for name in before if not name.startswith(prefixes) and "position_ids" not in name}
        # a bias before a batch norm, or of keys, has no gradient but for rounding
        moved = {name for name in trained if name in dict(model.named_parameters()) and not name.endswith("bias")}
        assert {name for name in before if name.startswith(prefixes)} <= unchanged, (kind, task, options)
        still = {name for name in moved & unchanged if not name.startswith("vision_model.post_layernorm")}
        assert still <= {"vision_model.embeddings.class_embedding"}, (kind, still)


def test_what_cannot_be_frozen_is_refused(make_model):
    model = make_model("clip")
    message = "^freeze_image_tower=True would freeze the random weights of 'tiny'; it is for pretrained weights"
    with pytest.raises(ValueError, match=message):
        freeze_towers(model, TaskArguments(freeze_image_tower=True), ModelArguments(model="tiny"))
    with pytest.raises(ValueError, match="^4 layers of CLIPVisionModel cannot be frozen: it has 3.$"):
        freeze_layers(model.vision_model, 4)
    with pytest.raises(ValueError, match="^frozen_vision_layers=1 would freeze the random weights of 'tiny'"):
        ModelArguments(model="tiny", frozen_vision_layers=1)


def test_scales_alone(make_model):
    model = make_model("clip")
    scales = learning_rate_scales(model, vision_lr_scale=0.25)
    for name, parameter in model.named_parameters():
        assert scales[parameter] == (0.25 if name.startswith("vision_model.") else 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vision_lr_scale": 0.0}, "^vision_lr_scale=0.0 must be above 0. To keep a tower unchanged, freeze it.$"),
        ({"layer_decay": 1.5}, "^layer_decay=1.5 must be above 0 and at most 1.$"),
        ({"entropy_warmup_steps": -1}, "^entropy_warmup_steps=-1 must be at least 0.$"),
    ],
)
def test_bad_values_are_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        TierTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **options)
