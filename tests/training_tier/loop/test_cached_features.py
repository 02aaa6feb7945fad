"""Training with the outputs of frozen towers from a folder is the training through the towers."""

import pytest
import torch
from small_trainings import ENTROPY_WEIGHTS, history_of, small_arguments
from transformers import set_seed

from modeling_tier import TierCLIPModel, TierDualEncoderModel
from training_tier.data.collator import PairCollator
from training_tier.data.pairs import PairDataset, PairOptions
from training_tier.loop.contrastive import TierTrainer
from training_tier.start.presets import preset_config
from training_tier.start.text_lora import add_text_lora

PLAIN = PairOptions()
TOWERS = ("vision_model", "text_model")


@pytest.fixture
def make_frozen(tmp_path, phantom, labelled, processor):
    """Function that makes a Trainer of two epochs with frozen towers, or (`dtype`) with their cached outputs."""

    def make(preset, dtype=None, folder="run", frozen=TOWERS, pairs=PLAIN, adapters=0, lora=None, **options):
        set_seed(0)
        pixels = {
            f"pixel_{part}": list(getattr(processor.image_processor, f"image_{part}")) for part in ("mean", "std")
        }
        config = preset_config(preset, processor.tokenizer, **ENTROPY_WEIGHTS, **pixels)
        if preset == "tiniest-dual":
            config.text_config.hidden_dropout_prob = config.text_config.attention_probs_dropout_prob = 0.0
            config.adapter_layers = adapters
        arguments = small_arguments(tmp_path / folder, per_device_eval_batch_size=5, **options)
        model = (TierDualEncoderModel if preset == "tiniest-dual" else TierCLIPModel)(config)
        trainer = TierTrainer(
            model=model,
            args=arguments,
            train_dataset=PairDataset(phantom, processor.image_processor, pairs),
            eval_dataset=PairDataset(labelled, processor.image_processor),
            data_collator=PairCollator(processor.tokenizer, arguments.pad_to_multiple_of),
            processing_class=processor,
            findings=["Consolidation", "Pneumothorax"],
        )
        for tower in frozen:
            getattr(trainer.model, tower).requires_grad_(False)
        if lora:
            add_text_lora(trainer.model, lora)
        if dtype is not None:
            trainer.use_cached_features(tmp_path / "features", dtype)
        return trainer

    return make


def forbid_towers(trainer, names):
    """A tower that runs in training is an error."""
    for name in names:
        tower = getattr(trainer.model, name)

        def fail(*_, tower=tower, **__):
            assert not tower.training, "the tower runs in training"

        tower.register_forward_pre_hook(fail, with_kwargs=True)


def assert_equal_runs(one, other, tolerance):
    for entry, expected in zip(history_of(one), history_of(other), strict=True):
        assert entry.keys() == expected.keys()
        for name, value in expected.items():
            assert entry[name] == pytest.approx(value, rel=tolerance, abs=tolerance), name
    weights = other.model.state_dict()
    for name, tensor in one.model.state_dict().items():
        torch.testing.assert_close(tensor, weights[name], rtol=tolerance, atol=tolerance)


CASES = {
    "plain": {},
    "chunks": {"contrastive_chunk_size": 3},
    "sentences": {"pairs": PairOptions(sentences_per_image=2)},
    "soft targets": {"pairs": PairOptions(soft_targets=True)},
    "text tower trained": {"frozen": ("vision_model",)},
    "texts drawn anew": {"pairs": PairOptions(sample_sentences=True)},
    # Adam makes a full step even of a gradient that is little more than rounding
    "adapters": {"adapters": 2, "optim": "sgd"},
    "text LoRA": {"lora": 2},
    "adapters and text LoRA": {"adapters": 2, "lora": 2, "contrastive_chunk_size": 3},
}

OF_DUAL = ("plain", "chunks", "adapters", "text LoRA", "adapters and text LoRA")
OF_CLIP = [case for case in CASES if "adapters" not in case]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "case"), [*(("tiniest", case) for case in OF_CLIP), *(("tiniest-dual", case) for case in OF_DUAL)]
)
def test_a_training_with_cached_features_equals_one_through_the_towers(preset, case, make_frozen):
    options = {"learning_rate": 1e-3, "save_strategy": "no", "load_best_model_at_end": False, **CASES[case]}
    plain = make_frozen(preset, **options)
    plain.train()
    cached = make_frozen(preset, torch.float32, "cached", **options)
    forbid_towers(
        cached, CASES[case].get("frozen", ("vision_model",) if "drawn" in case or "LoRA" in case else TOWERS)
    )
    cached.train()
    assert [entry for entry in history_of(plain) if "eval_auroc" in entry]
    assert_equal_runs(cached, plain, 1e-5)
