import json
import shutil

import numpy as np
import pytest
from saved_results import save_result

from compare_results import main


@pytest.fixture
def folders(tmp_path) -> list[str]:
    generator = np.random.default_rng(0)
    labels = np.arange(40) % 2
    return [
        str(save_result(tmp_path / f"run{i}", {"Edema": labels * i + generator.normal(size=40)}, {"Edema": labels}))
        for i in range(2)
    ]


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
        (["runs/third"], "The folder runs/third does not hold metrics.json: name a folder that tier-eval wrote."),
        (["--baseline", "own"], "The baseline 'own' is not one of the results: choose one of run0, run1."),
        (["a="], "'a=' is not a folder, and not NAME=FOLDER: give both the name and the folder."),
        (
            ["run1=runs/third"],
            "Two results are called 'run1' ({1} and runs/third): name each differently, as in NAME=runs/third.",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(folders, tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as exit_:
        main([*folders, *arguments, "--output_dir", str(tmp_path / "both")])
    assert exit_.value.code == 2 and capsys.readouterr().err == (
        f"compare_results.py: error: {message.format(*folders)}\n"
    )
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


def test_three_results_are_one_table_beside_the_baseline(folders, tmp_path, capsys):
    third = f"ours={shutil.copytree(folders[1], tmp_path / 'copy')}"
    main([*folders, third, "--baseline", "run1", "--n_bootstrap", "200", "--output_dir", str(tmp_path / "all")])
    text = capsys.readouterr().out
    assert "AUROC of the models" in text and "Each model minus the baseline, run1," in text
    comparison = json.loads((tmp_path / "all" / "comparison.json").read_text())
    assert comparison["baseline"] == "run1" and list(comparison["results"]) == ["run0", "run1", "ours"]
    assert comparison["results"]["ours"]["gain"]["mean"]["auroc"]["difference"] == 0


@pytest.mark.parametrize("arguments", [["--baseline", "run0"], []])
def test_two_results_with_a_baseline_or_a_name_are_a_table_too(folders, capsys, arguments):
    main([folders[0], folders[1] if arguments else f"b={folders[1]}", *arguments, "--n_bootstrap", "50"])
    assert "Each model minus the baseline, run0," in capsys.readouterr().out


def test_a_baseline_has_no_effect_with_radiologists(folders, capsys):
    with pytest.raises(SystemExit):
        main(["table.csv", "--radiologists", "folder", "--baseline", "a"])
    assert "--baseline has no effect with --radiologists: leave it out." in capsys.readouterr().err
