"""`tier-train --cache_features`: what is computed again, what is refused, and a run that resumes."""

import re
import resource
import shutil

import pytest
import torch
from child_processes import launcher, run_child
from safetensors.torch import load_file
from training_runs import QUICK, REPOSITORY, refused, run
from transformers.utils import is_peft_available

from modeling_tier import TierCLIPModel

FROZEN = ("--freeze_image_tower", "true", "--freeze_text_tower", "true", "--augmentation", "none")


@pytest.fixture
def command(base, tmp_path):
    return [*QUICK, "--model", base, *FROZEN, "--cache_features", tmp_path / "features"]


def weights(folder):
    return load_file(folder / "model.safetensors")


def notes(caplog):
    """What was said of the cache since the last call."""
    said = [record.getMessage() for record in caplog.records if ".feature_" in record.name]
    caplog.clear()
    return [re.sub(r"\S*features/", "features/", re.sub("[0-9a-f]{16}", "KEY", text)) for text in said]


@pytest.mark.slow
def test_features_are_computed_once_and_again_for_other_weights_or_pixels(command, base, tmp_path, caplog):
    caplog.set_level("INFO", "training_tier")
    run(*command, "--output_dir", tmp_path / "one")
    of_images, of_texts = "Features of {} images: {} are in features/images-KEY, {} are computed.", "Features of"
    said = notes(caplog)
    assert said[:2] == [of_images.format(48, 0, 48)] * 2 and said[2].startswith(of_texts)
    run(*command, "--output_dir", tmp_path / "two")
    assert notes(caplog) == []
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.equal(one[name], two[name]) for name in one)

    changed = [word if word != "phantom:num_images=48,image_size=64" else "phantom:num_images=60,image_size=64"
               for word in command]  # fmt: skip
    run(*changed, "--output_dir", tmp_path / "three")
    assert notes(caplog)[0] == of_images.format(60, 48, 12)

    model = TierCLIPModel.from_pretrained(base)
    model.vision_model.post_layernorm.bias.data += 0.01
    model.save_pretrained(base)
    run(*command, "--output_dir", tmp_path / "four")
    first, second, *_ = notes(caplog)
    assert first.endswith(
        "features holds images of 1 other towers, image processors or versions of the code, which may be deleted. "
        "Those of this run are computed."
    )
    assert second == of_images.format(48, 0, 48)


@pytest.mark.slow
def test_a_run_with_cached_features_resumes_as_if_uninterrupted(command, base, tmp_path, capsys):
    steps = ["--save_strategy", "steps", "--save_steps", "2", "--eval_strategy", "no",
             "--load_best_model_at_end", "false", "--max_steps", "4"]  # fmt: skip
    run(*command, *steps, "--output_dir", tmp_path / "whole")
    whole = weights(tmp_path / "whole")
    shutil.rmtree(tmp_path / "whole" / "checkpoint-4")
    resume = ["--resume_from_checkpoint", tmp_path / "whole" / "checkpoint-2", "--output_dir", tmp_path / "resumed"]
    moved = [word if word != tmp_path / "features" else tmp_path / "moved" for word in command]
    shutil.move(tmp_path / "features", tmp_path / "moved")
    run(*moved, *steps, *resume)
    resumed = weights(tmp_path / "resumed")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)

    without = command[: command.index("--cache_features")]
    shutil.rmtree(tmp_path / "resumed")
    assert "cached features was True and is False" in refused(capsys, *without, *steps, *resume)

    model = TierCLIPModel.from_pretrained(base)
    model.vision_model.post_layernorm.bias.data += 0.01
    model.save_pretrained(base)
    assert refused(capsys, *command, *steps, *resume) == (
        "The vision_model of the checkpoint is not the one whose features are cached: start from the same --model as "
        "the run that resumes, or leave cache_features out."
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--freeze_image_tower", "false"],
            "cache_features needs a frozen image tower, whose outputs never change; add",
        ),
        (
            ["--augmentation", "standard"],
            "cache_features keeps one output for each image, but augmentation='standard' ",
        ),
        (
            ["--image_cache", "other"],
            "image_cache has no effect with cache_features, which reads each image once; leave",
        ),
        (
            ["--group_texts", "true"],
            "group_texts has no effect with cache_features and a frozen text tower, which never",
        ),
        (
            ["--entropy_tokens", "all"],
            "cache_features does not keep the padding of texts, which entropy_tokens='all' ",
        ),
        (
            ["--streaming", "true"],
            "cache_features reads all images beforehand, which streaming avoids; use one of them.",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(command, options, message, tmp_path, capsys):
    said = refused(capsys, *command, *options, "--output_dir", tmp_path / "run")
    assert said.startswith(message)
    assert not (tmp_path / "features").exists() and not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.skipif(not is_peft_available(), reason="LoRA needs peft")
def test_a_text_tower_with_lora_runs_and_may_group_its_texts(command, tmp_path):
    run(*command, "--text_lora_rank", "2", "--group_texts", "true", "--output_dir", tmp_path / "run")
    assert [path.name[:7] for path in (tmp_path / "features").iterdir()] == ["images-"]


def test_a_folder_that_is_not_ours_is_refused_and_left_alone(command, tmp_path, capsys):
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / "thesis.docx").touch()
    said = refused(capsys, *command, "--output_dir", tmp_path / "run")
    assert said.endswith("is not a folder of features: it holds 'thesis.docx'; name a new or empty folder.")
    assert [path.name for path in (tmp_path / "features").iterdir()] == ["thesis.docx"]


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(command, tmp_path, capsys):
    """A limit on the size of files fails a write as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        said = refused(capsys, *command, "--output_dir", tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert said.endswith(
        "cannot be used (File too large); free some space there, or choose another folder. A later run continues with "
        "what is complete there."
    )
    (folder,) = (tmp_path / "features").iterdir()
    assert list(folder.iterdir()) == []
    run(*command, "--output_dir", tmp_path / "run")


@pytest.mark.slow
def test_two_processes_share_the_work_and_train_as_one(command, tmp_path, caplog):
    """Of the same global batches, with the first pass over chunks or without."""
    caplog.set_level("INFO", "training_tier")
    command = [*command, "--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false"]
    for chunks in ([], ["--contrastive_chunk_size", "2"]):
        folder = tmp_path / f"two{len(chunks)}"
        argv = [*command, *chunks, "--per_device_train_batch_size", "4", "--output_dir", folder]
        done = run_child([*launcher(2), REPOSITORY / "train_tier.py", *argv], OMP_NUM_THREADS=1)
        assert done.returncode == 0, done.stderr[-2000:]
        assert ("Features of 48 images: 0 are in" in done.stderr) == (not chunks)
        two = weights(folder)
        run(*command, *chunks, "--output_dir", tmp_path / f"one{len(chunks)}")
        assert notes(caplog) == []  # the two have computed all
        for name, tensor in weights(tmp_path / f"one{len(chunks)}").items():
            torch.testing.assert_close(two[name], tensor, rtol=1e-5, atol=1e-6)
