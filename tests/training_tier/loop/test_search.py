"""The random search of the entropy weights: its trials are trainings, and it can be stopped and continued."""

import shlex

import numpy as np
import pandas as pd
import pytest

import train_tier
from training_tier.loop.search import (
    STUDY_FILE,
    Study,
    check_search_options,
    describe_best,
    draw_weights,
    enqueue_missing,
    finished_trials,
    without_options,
    write_table,
)
from training_tier.options.search import SearchArguments

optuna = pytest.importorskip("optuna")

QUICK = [
    *("--data", "phantom:num_images=48,image_size=64", "--image_size", "32", "--model", "nano"),
    *("--eval_split", "validation", "--per_device_train_batch_size", "8", "--min_positives", "2"),
    *("--report_to", "none", "--use_cpu", "true", "--dataloader_pin_memory", "false", "--disable_tqdm", "true"),
]


def test_the_weights_are_drawn_as_the_authors_do():
    pairs = draw_weights(SearchArguments(search_trials=30), seed=3)
    assert len(pairs) == 30 and pairs[0] == {"token_entropy_weight": 0.0, "patch_entropy_weight": 0.0}
    values = np.array([list(pair.values()) for pair in pairs[1:]])
    assert values.min() >= 0 and values.max() <= 0.5
    assert np.abs(values.mean(axis=0) - 0.25).max() < 0.1 and np.unique(values).size > 50
    assert abs(np.corrcoef(values.T)[0, 1]) < 0.5  # independent
    assert draw_weights(SearchArguments(search_trials=9), seed=3) == pairs[:9]
    assert draw_weights(SearchArguments(search_trials=9), seed=4) != pairs[:9]
    wide = draw_weights(SearchArguments(search_trials=30, search_max_weight=2.0), seed=3)
    assert 1 < max(pair["token_entropy_weight"] for pair in wide) <= 2


def make_study(folder, trials, direction="maximize"):
    return Study(folder, "eval_auroc", direction, draw_weights(SearchArguments(search_trials=trials), seed=0))


@pytest.mark.slow
def test_a_search_that_was_stopped_continues_where_it_was(tmp_path):
    study = make_study(tmp_path, 4)
    assert enqueue_missing(study) == 4
    opened = optuna.load_study(storage=study.storage, study_name=STUDY_FILE)

    def objective(trial):
        return trial.suggest_float("token_entropy_weight", 0, 0.5) - trial.suggest_float(
            "patch_entropy_weight", 0, 0.5
        )

    opened.optimize(objective, n_trials=2)
    opened.ask()  # the third is running when the process dies
    assert enqueue_missing(study) == 2
    opened.optimize(objective, n_trials=2)
    assert enqueue_missing(study) == 0
    assert enqueue_missing(make_study(tmp_path, 6)) == 2
    done = {pair: value for pair, value, _ in finished_trials(opened)}
    assert done == {
        tuple(pair.values()): pair["token_entropy_weight"] - pair["patch_entropy_weight"] for pair in study.pairs
    }
    table = write_table(study)
    assert table["eval_auroc"].tolist() == [done[tuple(pair.values())] for pair in study.pairs]
    assert table["state"].tolist() == ["complete"] * 4


@pytest.mark.parametrize("direction, best", [("maximize", "0.3"), ("minimize", "0.1")])
def test_the_best_command(tmp_path, direction, best):
    table = pd.DataFrame(
        {
            "trial": [0, 1, 2],
            "token_entropy_weight": [0.0, 0.1, 0.3],
            "patch_entropy_weight": [0.0, 0.2, 0.4],
            "eval_auroc": [0.7, 0.6, 0.8],
        }
    )
    typed = ["python", "train_tier.py", "configs/tier.yaml", "--data", "my data", "--search_trials=3"]
    typed += ["--token_entropy_weight", ".2", "--output_dir", "runs/x", "--search-epochs", "1"]
    sentence, command = describe_best(make_study(tmp_path / "search", 3, direction), table, typed)
    assert f"token_entropy_weight={best}" in sentence and "(both weights 0: 0.7000)" in sentence
    words = shlex.split(command.removeprefix("Train with them: "))
    assert words[:5] == ["python", "train_tier.py", "configs/tier.yaml", "--data", "my data"]
    assert words[5:7] == ["--token_entropy_weight", best] and words[-2:] == ["--output_dir", f"{tmp_path}/search-best"]
    assert len(words) == 11


def test_damaged_options_of_a_search_are_one_sentence(tmp_path):
    path = tmp_path / "search_options.json"
    path.write_text("[]")
    with pytest.raises(ValueError) as error:
        check_search_options(tmp_path, {"seed": 1})
    assert str(error.value) == f"{path} is not a JSON object." and path.read_text() == "[]"


def test_options_are_taken_out_with_their_values():
    argv = ["a.yaml", "--x", "1", "--y=2", "--z", "3", "--y", "4"]
    assert without_options(argv, ["y"]) == ["a.yaml", "--x", "1", "--z", "3"]


def refused(capsys, *argv):
    with pytest.raises(SystemExit) as stop:
        train_tier.main([*QUICK, *map(str, argv)])
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "options, message",
    [
        (("--search_epochs", "2"), "search_epochs has no effect without --search_trials"),
        (("--search_trials", "0"), "search_trials=0 must be at least 1. For example 30"),
        (("--search_trials", "3", "--search_max_weight", "0"), "search_max_weight=0.0 must be above 0"),
        (("--search_trials", "3", "--metric_for_best_model", "eval_loss"), "changes with the weights"),
        (("--search_trials", "3", "--group_texts", "true"), "group_texts does not work with --search_trials"),
        (("--search_trials", "3", "--task", "classification"), "which a classifier does not have"),
    ],
)
def test_what_a_search_cannot_have(capsys, tmp_path, options, message):
    assert message in refused(capsys, "--output_dir", tmp_path / "run", *options)


@pytest.mark.slow
def test_a_search_is_short_trainings_and_continues(tmp_path, capsys):
    rate = ("--learning_rate", "3e-3")

    def search(name, trials):
        options = ["--search_trials", str(trials), "--search_max_weight", "50"]  # large, so that few steps tell
        train_tier.main([*QUICK, *rate, *options, "--output_dir", str(tmp_path / name)])
        return capsys.readouterr().out, pd.read_csv(tmp_path / name / "trials.csv").drop(columns="seconds")

    out, whole = search("whole", 3)
    search("parts", 2)
    _, continued = search("parts", 3)
    pd.testing.assert_frame_equal(whole, continued)
    assert whole["state"].tolist() == ["complete"] * 3 and whole["eval_auroc"].nunique() > 1
    assert not list((tmp_path / "whole").rglob("*.safetensors"))
    assert "Best of 3 trials: trial" in out and "Train with them: python train_tier.py --data phantom" in out
    options = ("--search_trials", 3, "--search_max_weight", 50, "--output_dir", tmp_path / "whole")
    assert "holds a search with another learning_rate" in refused(capsys, *options)

    # each trial is the training with its weights: the first and the last one
    for row in (whole.iloc[0], whole.iloc[-1]):
        run = tmp_path / f"trial-{row['trial']}"
        weights = [word for name in whole.columns[1:3] for word in (f"--{name}", f"{row[name]:g}")]
        train_tier.main([*QUICK, *rate, *weights, "--num_train_epochs", "1", "--output_dir", str(run)])
        history = pd.read_json(run / "trainer_state.json", typ="series")["log_history"]
        assert [entry["eval_auroc"] for entry in history if "eval_auroc" in entry] == pytest.approx(
            [row["eval_auroc"]]
        )
