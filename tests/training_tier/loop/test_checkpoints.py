import math

import pytest
import torch
from transformers import TrainerControl, TrainerState

from modeling_tier import TierDualEncoderModel
from training_tier.loop.checkpoints import (
    TopCheckpoints,
    average_weights,
    list_checkpoints,
    more_is_better,
    rank_checkpoints,
)
from training_tier.options.training import TierTrainingArguments
from training_tier.start.presets import preset_config

HISTORY = [
    {"step": 10, "loss": 9.0},
    {"step": 10, "eval_auroc": 0.6},
    {"step": 20, "eval_auroc": 0.8},
    {"step": 30, "eval_auroc": math.nan},
    {"step": 40, "eval_auroc": 0.8},
    {"step": 50, "eval_auroc": 0.7},
]


def test_ranking():
    ranked = [(20, 0.8), (40, 0.8), (50, 0.7), (10, 0.6)]
    assert rank_checkpoints([10, 20, 30, 40, 50, 60], HISTORY, "eval_auroc") == ranked
    assert rank_checkpoints([50, 40], HISTORY, "auroc") == [(40, 0.8), (50, 0.7)]
    assert rank_checkpoints([10, 20, 50], HISTORY, "auroc", greater_is_better=False)[0] == (10, 0.6)


def test_the_best_and_the_latest_are_kept(tmp_path):
    (tmp_path / "checkpoint-best").mkdir()  # not a checkpoint of a step
    (tmp_path / "checkpoint-7.tmp").mkdir()
    arguments = TierTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", save_top_k=2)
    kept = []
    for step in (10, 20, 30, 40, 50, 60):
        (tmp_path / f"checkpoint-{step}").mkdir()
        state = TrainerState(global_step=step, log_history=[e for e in HISTORY if e["step"] <= step])
        TopCheckpoints(2).on_save(arguments, state, TrainerControl())
        kept.append(list(list_checkpoints(tmp_path)))
    assert kept == [[10], [10, 20], [10, 20, 30], [20, 40], [20, 40, 50], [20, 40, 60]]
    assert (tmp_path / "checkpoint-best").is_dir() and (tmp_path / "checkpoint-7.tmp").is_dir()


def test_weights_and_batch_norm_statistics_are_averaged(tmp_path, processor):
    models = []
    for seed, folder in ((0, "a"), (1, "b"), (2, "c")):
        torch.manual_seed(seed)
        model = TierDualEncoderModel(preset_config("tiniest-dual", processor.tokenizer)).train()
        model.get_image_features(torch.rand(4, 3, 32, 32))  # moves the statistics
        model.save_pretrained(tmp_path / folder)
        models.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    average_weights(model, [tmp_path / folder for folder in "abc"])
    names = [name for name in models[0] if name.endswith(("running_mean", "running_var"))]
    assert len(names) > 4 and all(not torch.equal(models[0][name], models[1][name]) for name in names)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            mean = torch.stack([weights[name].double() for weights in models]).mean(0)
            torch.testing.assert_close(tensor.double(), mean, rtol=1e-6, atol=1e-7)
        else:
            assert torch.equal(tensor, models[2][name])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"save_top_k": 0}, "^save_top_k=0 must be at least 1.$"),
        ({"early_stopping_patience": 0}, "^early_stopping_patience=0 must be at least 1.$"),
        ({"average_top_k": True}, "^average_top_k has no effect with save_top_k=None; use for example 3.$"),
        ({"save_top_k": 3, "save_total_limit": 5}, "^save_total_limit=5 has no effect with save_top_k; leave it out."),
        (
            {"save_top_k": 3, "load_best_model_at_end": False},
            "^save_top_k needs load_best_model_at_end, which has every checkpoint evaluated.$",
        ),
    ],
)
def test_bad_options_are_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        TierTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **options)


def test_without_a_direction_the_name_of_the_metric_gives_it():
    log = [
        {"step": step, "eval_loss": loss, "eval_auroc": 1 - loss} for step, loss in ((2, 0.5), (4, 0.25), (6, 0.75))
    ]
    assert rank_checkpoints([2, 4, 6], log, "eval_loss") == [(4, 0.25), (2, 0.5), (6, 0.75)]
    assert rank_checkpoints([2, 4, 6], log, "loss") == [(4, 0.25), (2, 0.5), (6, 0.75)]
    assert rank_checkpoints([2, 4, 6], log, "auroc") == [(4, 0.75), (2, 0.5), (6, 0.25)]
    assert [more_is_better(name) for name in ("eval_auroc_Edema", "eval_contrastive_loss", "token_entropy")] == [
        *(True, False, False)
    ]
