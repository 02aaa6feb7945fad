"""What cannot go together is known from the options and the launch alone, before anything is loaded."""

from types import SimpleNamespace

import pytest
from training_runs import refused

from training_tier.options.compatibility import (
    Launch,
    check_together,
    refuse,
    rules_on_chunks,
    rules_on_one_gpu_each,
    rules_on_text_groups,
)
from training_tier.options.parsing import parse_options

CLASSIFY = ("--task", "classification")
BY_LENGTH = ("--train_sampling_strategy", "group_by_length")
STREAM = ("--streaming", "--eval_split", "validation")
TOP = ("--save_top_k", "3", "--average_top_k")


def check(*argv):
    words = ["--output_dir", "run", "--use_cpu", "true", "--report_to", "none", "--data", "absent", *argv]
    check_together(parse_options(words, "tier-train"))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--freeze_image_tower",), "freeze_image_tower=True would freeze the random weights of 'tiny'; it is for"),
        (("--freeze_text_tower",), "freeze_text_tower=True would freeze the random weights of 'tiny'; it is for"),
        (
            (*CLASSIFY, "--head_from_prompts"),
            "head_from_prompts needs a trained text tower, but the weights of 'tiny'",
        ),
        (
            (*CLASSIFY, *BY_LENGTH),
            "train_sampling_strategy='group_by_length' needs texts, which a classifier does not",
        ),
        ((*CLASSIFY, *STREAM, *BY_LENGTH), "train_sampling_strategy='group_by_length' and streaming both set the"),
        (
            (*STREAM, *BY_LENGTH),
            "train_sampling_strategy='group_by_length' and streaming both set the order of the im",
        ),
        ((*BY_LENGTH, "--avoid_duplicates"), "train_sampling_strategy='group_by_length' and avoid_duplicates both"),
        (
            (*BY_LENGTH, "--sample_sentences"),
            "train_sampling_strategy='group_by_length' needs the length of each text",
        ),
        (("--per_device_train_batch_size", "1"), "A batch of 1 pair has no negatives; raise --per_device_train_batch"),
        (("--contrastive_chunk_size", "64"), "contrastive_chunk_size=64 is more than the 32 pairs of a batch, which"),
        (("--contrastive_chunk_size", "8", "--image_views", "2"), "contrastive_chunk_size does not work with image_v"),
        (("--group_texts", "--torch_compile"), "group_texts makes batches of many shapes, which differ between proc"),
        (("--search_trials", "3", *CLASSIFY), "search_trials searches the weights of the contrastive loss, which a"),
        (("--search_trials", "3", "--push_to_hub"), "push_to_hub does not work with --search_trials; pass it to the"),
        (
            ("--search_trials", "3", "--metric_for_best_model", "loss"),
            "metric_for_best_model='eval_loss' changes with",
        ),
    ],
)
def test_options_of_different_groups(argv, message):
    if "--search_trials" in argv:
        pytest.importorskip("optuna")
    with pytest.raises(ValueError) as error:
        check(*argv)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ("--streaming", "--avoid_duplicates"),
            "avoid_duplicates and streaming both set the order of the images; use",
        ),
        (
            (*STREAM, "--image_cache", "x"),
            "image_cache keeps a copy of the images, which streaming avoids; use one of",
        ),
        (("--image_views", "2", "--augmentation", "none"), "image_views=2 needs an augmentation, or the views are eq"),
        (("--model", "owner/x", "--tokenizer", "y"), "tokenizer has no effect on the checkpoint 'owner/x', which has"),
        (("--model", "tiny", "--image_size", "100"), "image_size=100 is not a multiple of the 16-pixel patches of"),
        (("--resume_changed",), "resume_changed has no effect without --resume_from_checkpoint; leave it out."),
        (("--average_top_k",), "average_top_k has no effect with save_top_k=None; use for example 3."),
        ((*TOP, "--save_total_limit", "5"), "save_total_limit=5 has no effect with save_top_k; leave it out."),
        (("--early_stopping_patience", "2", "--no_load_best_model_at_end"), "early_stopping_patience needs load_best"),
        (
            ("--eval_strategy", "steps"),
            "eval_strategy='steps' and save_strategy='epoch' differ, but the best checkpoint",
        ),
    ],
)
def test_options_of_one_group(argv, message):
    with pytest.raises(ValueError) as error:
        check(*argv)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (TOP, "average_top_k needs whole weights, which FSDP and DeepSpeed shard; leave it out."),
        (("--group_texts",), "group_texts makes batches of many shapes"),
    ],
)
def test_what_accelerate_was_told_counts(name, argv, message, monkeypatch):
    check(*argv)
    options = parse_options(["--output_dir", "run", "--use_cpu", "true", "--report_to", "none", *argv], "tier-train")
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(ValueError, match=message):
        check_together(options)


@pytest.mark.parametrize(
    ("launch", "message"),
    [
        (
            Launch(2, fsdp=False, deepspeed=False),
            "contrastive_chunk_size works with torch_compile in a single process",
        ),
        (Launch(1, fsdp=False, deepspeed=True), "contrastive_chunk_size does not work with DeepSpeed; leave it out"),
        (Launch(1, fsdp=True, deepspeed=False), None),
    ],
)
def test_chunks_and_the_launch(launch, message):
    training = SimpleNamespace(
        contrastive_chunk_size=4, train_batch_size=8, torch_compile=launch.processes > 1, group_texts=False
    )
    refuse(rules_on_text_groups(training, launch))
    if message is None:
        refuse(rules_on_chunks(training, launch, image_views=1))
        return
    with pytest.raises(ValueError, match=message):
        refuse(rules_on_chunks(training, launch, image_views=1))


def test_a_process_that_sees_two_gpus_is_refused():
    with pytest.raises(ValueError, match="^This process sees 2 GPUs and would divide each batch among them"):
        refuse(rules_on_one_gpu_each(SimpleNamespace(n_gpu=2)))


def test_nothing_is_read_before(capsys, tmp_path):
    argv = ("--data", tmp_path / "absent", "--freeze_text_tower", "--output_dir", tmp_path / "run")
    assert refused(capsys, *argv).startswith("freeze_text_tower=True would freeze the random weights of 'tiny'")
    assert not list(tmp_path.iterdir())
