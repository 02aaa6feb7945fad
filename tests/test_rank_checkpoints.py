import json

import pytest
from tiny_models import save_tiny_clip

import eval_zeroshot
from rank_checkpoints import main

DATA = ["--data", "phantom:num_images=40,image_size=64", "--min_positives", "5", "--n_bootstrap", "20"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run with three checkpoints of random weights, of which the last has those of the first."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    for step, seed in ((100, 0), (20, 1), (1000, 0)):
        save_tiny_clip(folder / f"checkpoint-{step}", seed)
    (folder / "logs").mkdir()
    return folder


@pytest.mark.slow
def test_the_best_comes_first_with_the_numbers_of_its_evaluation(folder, tmp_path, capsys):
    main([str(folder), *DATA, "--protocol", "tier", "--top", "2", "--output", str(tmp_path / "deep" / "ranking.json")])
    text = capsys.readouterr().out
    found = json.loads((tmp_path / "deep" / "ranking.json").read_text())
    ranking = found["ranking"]
    assert found["protocol"]["name"] == "tier" and found["protocol"]["split"] == "validation"
    assert [entry["auroc"] for entry in ranking] == sorted((entry["auroc"] for entry in ranking), reverse=True)
    by_step = {entry["step"]: entry for entry in ranking}
    steps = list(by_step)
    assert sorted(steps) == [20, 100, 1000] and steps.index(100) < steps.index(1000)  # of equal ones the earlier
    assert by_step[100]["auroc"] == by_step[1000]["auroc"] != by_step[20]["auroc"]
    eval_zeroshot.main(
        [str(folder / "checkpoint-20"), *DATA, "--protocol", "tier", "--output_dir", str(tmp_path / "one")]
    )
    alone = json.loads((tmp_path / "one" / "metrics.json").read_text())
    assert by_step[20]["auroc"] == alone["mean"]["auroc"] and by_step[20]["auroc_ci95"] == alone["mean"]["auroc_ci95"]
    assert by_step[20]["findings"] == {name: result["auroc"] for name, result in alone["findings"].items()}

    rows = [line.split()[:2] for line in text.splitlines() if line.strip()[:1].isdigit()]
    assert rows == [[str(place), f"checkpoint-{step}"] for place, step in enumerate(steps, 1)]
    best = " ".join(str(folder / f"checkpoint-{step}") for step in steps[:2])
    assert f"  eval_zeroshot.py {best} ...\n" in text and "on other images" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *(
            ([f"--{name}"], f"--{name} has no effect on a ranking: pass it to the evaluation of the best checkpoint.")
            for name in ("figures", "transfer", "learning_curve", "fine_tuning_steps", "cxr_align")
        ),
        (
            ["--output_dir=x"],
            "--output_dir has no effect on a ranking: pass it to the evaluation of the best checkpoint.",
        ),
        (["--top", "0"], "--top must be at least 1, but is 0."),
        (["--splt", "test"], "unknown option --splt: did you mean --split?"),
        (["--protocol", "teir"], "The protocol 'teir' is not known: did you mean 'tier'? choose one of"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(folder, tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as exit_:
        main([str(folder), *DATA, *arguments, "--output", str(tmp_path / "ranking.json")])
    assert exit_.value.code == 2 and capsys.readouterr().err.startswith(f"rank_checkpoints.py: error: {message}")
    assert not (tmp_path / "ranking.json").exists()


def test_a_folder_without_checkpoints_is_refused(folder, tmp_path, capsys):
    for name, message in (
        (tmp_path / "absent", "does not exist: name the --output_dir of a training."),
        (folder / "checkpoint-20", "does not hold any checkpoint-N: train with a --save_total_limit that keeps them."),
    ):
        with pytest.raises(SystemExit):
            main([str(name), *DATA])
        assert message in capsys.readouterr().err
