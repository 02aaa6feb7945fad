"""LoRA by peft: adapters on the attention of both towers, trained, saved, loaded and merged."""

import pytest
import torch
from small_trainings import ENTROPY_WEIGHTS, small_arguments
from transformers import AutoModel, set_seed

from modeling_tier import TierCLIPModel, TierDualEncoderConfig, TierDualEncoderModel
from processing_tier.phantom.dataset import make_phantom
from training_tier.data.collator import PairCollator
from training_tier.data.pairs import PairDataset
from training_tier.loop.contrastive import TierTrainer
from training_tier.start.presets import preset_config

peft = pytest.importorskip("peft")

TOWER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def make_model(name: str, tokenizer):
    set_seed(0)
    if name == "clip":
        return TierCLIPModel(preset_config("tiniest", tokenizer, **ENTROPY_WEIGHTS))
    text_config = {"model_type": "bert", **TOWER, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    vision_config = {"model_type": "dinov2", **TOWER, "image_size": 32, "patch_size": 16, "mlp_ratio": 1}
    config = TierDualEncoderConfig(
        text_config=text_config, vision_config=vision_config, projection_dim=16, **ENTROPY_WEIGHTS
    )
    return TierDualEncoderModel(config)


def train_adapter(model, folder, phantom, processor) -> TierTrainer:
    evaluation = make_phantom(16, seed=1, image_size=64, split="validation")
    trainer = TierTrainer(
        model=model,
        args=small_arguments(folder, learning_rate=1e-2),
        train_dataset=PairDataset(phantom, processor.image_processor),
        eval_dataset=PairDataset(evaluation, processor.image_processor),
        data_collator=PairCollator(processor.tokenizer),
        processing_class=processor,
        findings=["Consolidation"],
    )
    trainer.train()
    trainer.save_model()
    return trainer


@pytest.mark.parametrize("name", ["clip", "dual"])
def test_lora(name, phantom, processor, tmp_path):
    targets = ["q_proj", "v_proj", "query", "value"]  # CLIP's names and BERT's; DINOv2's depend on the version
    base = make_model(name, processor.tokenizer)
    base.save_pretrained(tmp_path / "base")
    before = {key: tensor.clone() for key, tensor in base.state_dict().items()}
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, lora_alpha=4, target_modules=targets))
    adapted = {key.split(".")[2] for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert adapted == {"text_model", "vision_model"}
    assert all("lora_" in key for key, parameter in model.named_parameters() if parameter.requires_grad)

    # Trained, and saved without the base
    trainer = train_adapter(model, tmp_path / "adapter", phantom, processor)
    for key, parameter in model.named_parameters():
        if "lora_B" in key:  # starts at 0
            assert parameter.abs().max() > 1e-3, key
    assert any("eval_auroc" in entry for entry in trainer.state.log_history)
    files = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= files and "model.safetensors" not in files

    batch = trainer._prepare_inputs(trainer.data_collator([trainer.eval_dataset[i] for i in range(4)]))
    for report in ("image_ids", "indices", "unreadable"):
        batch.pop(report)
    with torch.no_grad():
        # Loaded on the base, which has not changed
        expected = model.eval()(**batch)
        loaded = peft.PeftModel.from_pretrained(AutoModel.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
        for key, tensor in loaded.eval().get_base_model().state_dict().items():
            if "lora_" not in key:
                name_before = key.replace(".base_layer", "")
                assert torch.equal(tensor, before[name_before]), key
        with loaded.disable_adapter():
            start = loaded(**batch)
        computed = loaded(**batch)
        assert torch.equal(computed.loss, expected.loss)
        assert torch.equal(computed.logits_per_image, expected.logits_per_image)
        assert (start.logits_per_image - expected.logits_per_image).abs().max() > 0.01

        # Merged into a model without adapters
        merged = loaded.merge_and_unload()
        assert type(merged) is type(base) and list(merged.state_dict()) == list(before)
        merged.save_pretrained(tmp_path / "merged")
        for model in (merged, AutoModel.from_pretrained(tmp_path / "merged")):
            output = model.eval()(**batch)
            torch.testing.assert_close(output.logits_per_image, expected.logits_per_image, rtol=0, atol=1e-5)
            torch.testing.assert_close(output.loss, expected.loss, rtol=0, atol=1e-5)
