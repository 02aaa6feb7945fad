"""--text_lora_rank: LoRA in a frozen text tower, merged in the end; resumed runs, and what is refused."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from training_runs import QUICK, refused, run
from transformers import AutoModel, set_seed

from evaluation_tier.models.loading import load_model
from modeling_tier import TierDualEncoderConfig, TierDualEncoderModel
from processing_tier import TierProcessor
from training_tier.start.text_lora import add_text_lora, merge_text_lora, read_with_lora

peft = pytest.importorskip("peft")

TOWER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
STEPS = [
    *("--max_steps", "4", "--save_strategy", "steps", "--save_steps", "2", "--eval_strategy", "no"),
    *("--load_best_model_at_end", "false", "--learning_rate", "1e-2", "--freeze_text_tower", "--text_lora_rank", "2"),
]


@pytest.fixture
def dual_base(tmp_path, processor: TierProcessor) -> str:
    """A dual encoder with a ViT, whose file has other names of weights than the model in memory."""
    set_seed(0)
    tokenizer = processor.tokenizer
    text = {"model_type": "bert", **TOWER, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    vision = {"model_type": "vit", **TOWER, "image_size": 32, "patch_size": 16}
    TierDualEncoderModel(
        TierDualEncoderConfig(text_config=text, vision_config=vision, projection_dim=16)
    ).save_pretrained(tmp_path / "dual")
    processor.save_pretrained(tmp_path / "dual")
    return str(tmp_path / "dual")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["clip", "dual"])
def test_the_final_model_is_plain_and_a_resumed_run_the_same(kind, base, dual_base, tmp_path):
    start = base if kind == "clip" else dual_base
    argv = [*QUICK, *STEPS, "--model", start, "--output_dir", tmp_path / "run"]
    run(*argv)
    model, before = AutoModel.from_pretrained(tmp_path / "run"), AutoModel.from_pretrained(start)
    assert model.state_dict().keys() == before.state_dict().keys()
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before.state_dict()[name])}
    text = {name.rpartition(".")[0].rpartition(".")[2] for name in moved if name.startswith("text_model.")}
    assert text == ({"q_proj", "v_proj"} if kind == "clip" else {"query", "value"})
    weights = "model.safetensors"
    assert any("lora_A" in name for name in load_file(tmp_path / "run" / "checkpoint-2" / weights))
    with pytest.raises(ValueError, match="is a checkpoint of a training with --text_lora_rank, which keeps LoRA besi"):
        load_model(tmp_path / "run" / "checkpoint-2")
    # resumed from the middle, the run ends with the same weights
    expected = load_file(tmp_path / "run" / weights)
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    run(*argv, "--resume_from_checkpoint", "last")
    resumed = load_file(tmp_path / "run" / weights)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in expected.items())


def test_merging_keeps_the_outputs_and_files_are_read_by_name(dual_base):
    model = TierDualEncoderModel.from_pretrained(dual_base).eval()
    ids = torch.arange(5, 13)[None]
    before = model.get_text_features(input_ids=ids).pooler_output
    plain = set(model.state_dict())
    model.text_model.requires_grad_(False)
    add_text_lora(model, 2)
    assert torch.equal(model.get_text_features(input_ids=ids).pooler_output, before)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    adapted = model.get_text_features(input_ids=ids).pooler_output
    assert (adapted - before).abs().max() > 1e-3
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    read = read_with_lora(model, state)
    assert all(torch.equal(tensor, read[name]) for name, tensor in state.items())
    merge_text_lora(model)
    assert set(model.state_dict()) == plain
    torch.testing.assert_close(model.get_text_features(input_ids=ids).pooler_output, adapted, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_tower_without_such_layers_is_refused():
    model = TierDualEncoderModel(TierDualEncoderConfig(vision_config={"model_type": "vit", **TOWER}))
    model.text_model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="^text_lora_rank=2: Sequential does not have layers that LoRA adapts here; "):
        add_text_lora(model, 2)


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--text_lora_rank", "2"], "text_lora_rank=2 adapts a frozen text tower, and here it is trained whole; add"),
        (["--text_lora_rank", "0"], "text_lora_rank=0 must be at least 1."),
        (
            ["--text_lora_rank", "2", "--freeze_text_tower", "--save_top_k", "2"],
            "text_lora_rank=2 does not work with save",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(capsys, base, tmp_path, argv, sentence):
    assert refused(capsys, *QUICK, "--model", base, "--output_dir", tmp_path / "run", *argv).startswith(sentence)
