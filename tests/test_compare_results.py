import numpy as np
import pandas as pd
import pytest

from compare_results import main
from evaluation_tier.output.metrics_file import write_metrics
from evaluation_tier.output.predictions import write_predictions


@pytest.fixture
def folders(tmp_path) -> list[str]:
    generator = np.random.default_rng(0)
    labels = np.arange(40) % 2
    names = [f"image{i}" for i in range(40)]
    for i in range(2):
        result = {
            "auroc": 0.5,
            "auroc_ci95": [0, 1],
            "auprc": 0.5,
            "threshold": 0.5,
            "n_positive": 20,
            "n_negative": 20,
        }
        metrics = {"dataset": "mine", "protocol": {}, "n_images": 40, "findings": {"Edema": result}, "mean": {}}
        predictions = pd.DataFrame({"image_id": names, "patient_id": names, "label_Edema": labels})
        predictions["score_Edema"] = labels * i + generator.normal(size=40)
        write_metrics(tmp_path / f"run{i}" / "metrics.json", metrics)
        write_predictions(tmp_path / f"run{i}" / "predictions.parquet", predictions)
    return [str(tmp_path / "run0"), str(tmp_path / "run1")]


def test_prints_and_writes_when_asked(folders, tmp_path, capsys):
    main([*folders, "--n_bootstrap", "20"])
    text = capsys.readouterr().out
    assert "Difference of the AUROC" in text and "Mean of 1" in text and "Written" not in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run0", "run1"]
    main([*folders, "--n_bootstrap", "20", "--output_dir", str(tmp_path / "both")])
    assert capsys.readouterr().out.startswith(text[:-1]) and (tmp_path / "both" / "comparison.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--n_bootstrap", "0"], "--n_bootstrap must be at least 1, but is 0."),
        (["--seed", "-1"], "--seed must not be negative, but is -1."),
        (["--n_boot", "5"], "unknown option --n_boot: did you mean --n_bootstrap?"),
        (["--frist", "5"], "unknown option --frist: see compare_results.py --help."),
        (["runs/third"], "unknown argument runs/third: see compare_results.py --help."),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(folders, tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as exit_:
        main([*folders, *arguments, "--output_dir", str(tmp_path / "both")])
    assert exit_.value.code == 2 and capsys.readouterr().err == f"compare_results.py: error: {message}\n"
    assert not (tmp_path / "both").exists()


def test_without_folders_it_says_which_are_missing(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["a"])
    assert exit_.value.code == 2
    assert capsys.readouterr().err == (
        "compare_results.py: error: B is missing: name a second evaluation, or pass --radiologists if A is a table of "
        "predictions.\n"
    )


@pytest.mark.parametrize("name", ["file", "file/both"])
def test_an_output_folder_that_cannot_be_is_refused_before_the_work(folders, tmp_path, capsys, name):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(SystemExit) as exit_:
        main([*folders, "--output_dir", str(tmp_path / name)])
    output = capsys.readouterr()
    assert exit_.value.code == 2 and output.out == ""
    assert "cannot be written: choose another --output_dir." in output.err
    assert (tmp_path / "file").read_text() == "kept"


def test_a_damaged_file_is_one_sentence(folders, tmp_path, capsys):
    (tmp_path / "run1" / "predictions.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(SystemExit) as exit_:
        main(folders)
    assert exit_.value.code == 2
    assert "predictions.parquet cannot be read as Parquet: evaluate the model again." in capsys.readouterr().err


def test_a_file_of_radiologists_is_not_called_missing(tmp_path, capsys):
    (tmp_path / "labels.csv").write_text("a,b\n1,2\n")
    with pytest.raises(SystemExit) as exit_:
        main([str(tmp_path / "labels.csv"), "--radiologists", str(tmp_path / "labels.csv")])
    assert exit_.value.code == 2
    assert capsys.readouterr().err == (
        f"compare_results.py: error: {tmp_path}/labels.csv: this is a file; name the folder that holds the "
        "radiologists' labels.\n"
    )
