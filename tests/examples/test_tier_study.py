"""The command of the study: what it refuses, what it runs, and that a second run does not train again."""

import json
import sys

import pandas as pd
import pytest
import study_runs
import tier_study
from study_runs import TRAINED, Cell, Failure, Processes, Source, Study, run_cell, run_cells
from training_runs import QUICK, write_folder

PHANTOM = Source("phantom", "phantom", "demo-phantom", "test", ("grounding", "deletion"))
FORMS = {"none": tier_study.FORMS["none"], "ceiling": {"task": "classification"}}


def refused(capsys, *argv) -> str:
    with pytest.raises(SystemExit) as stop:
        tier_study.main([str(word) for word in argv])
    assert stop.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1].removeprefix("tier_study.py: error: ")


def test_bad_words_are_refused_at_once(capsys, tmp_path):
    folder = ("--output_dir", tmp_path / "study")
    assert refused(capsys, *folder, "--forms", "papre").startswith("the form 'papre' is not known: choose from none,")
    assert refused(capsys, *folder, "--seeds", "-1") == "--seeds must not be negative, but -1 is."
    assert refused(capsys, *folder, "--jobs", "0") == "--jobs must be at least 1, but is 0."
    assert refused(capsys, *folder, "--options", "x").startswith("--options takes NAME=VALUE, not 'x'")
    assert "absent: the folder does not exist" in refused(capsys, *folder, "--data", tmp_path / "absent")
    assert refused(capsys, *folder, "--options", "epochs=2").startswith("Unknown option '--epochs'; did you mean")
    assert "--grounding_data is for models trained on radiographs" in refused(
        capsys, *folder, "--grounding_data", "phantom"
    )
    assert not (tmp_path / "study").exists()


def test_the_reference_is_always_trained_and_forms_keep_their_order():
    args = tier_study.parse(["--output_dir", "x", "--forms", "both-5", "paper", "--seeds", "3", "3"])
    assert args.forms == ["none", "paper", "both-5"] and args.seeds == [3]
    assert set(tier_study.FORMS) >= {f"{of}-{weight}" for of in ("token", "patch", "both") for weight in (0.01, 0.5)}


def test_another_study_in_the_folder_is_refused_and_more_seeds_and_forms_are_not(tmp_path):
    Study(tmp_path, (PHANTOM,), FORMS, {"max_steps": "2"}, (0,)).check_and_describe()
    other = {"paper": {"token_entropy_weight": 0.2}}
    Study(tmp_path, (PHANTOM,), other, {"max_steps": "2"}, (0, 1)).check_and_describe()
    assert set(json.loads((tmp_path / "study.json").read_text())["forms"]) == {"none", "ceiling", "paper"}
    described = tmp_path / "study.json"
    ours = described.read_text()
    described.write_text(ours.replace(study_runs.hash_sources(), "0" * 64))
    with pytest.raises(ValueError, match="holds a study by other code: choose another --output_dir"):
        Study(tmp_path, (PHANTOM,), FORMS, {"max_steps": "2"}, (0,)).check_and_describe()
    described.write_text(ours)
    with pytest.raises(ValueError, match=r"holds a study with other options \(options: of every training\)"):
        Study(tmp_path, (PHANTOM,), FORMS, {"max_steps": "3"}, (0,)).check_and_describe()
    with pytest.raises(ValueError, match=r"with other options \(forms: paper\): choose another --output_dir"):
        changed = {"paper": {"token_entropy_weight": 0.5}}
        Study(tmp_path, (PHANTOM,), changed, {"max_steps": "2"}, (0,)).check_and_describe()
    with pytest.raises(ValueError, match=r"with other options \(data: phantom\)"):
        shorter = PHANTOM._replace(split="validation")
        Study(tmp_path, (shorter,), FORMS, {"max_steps": "2"}, (0,)).check_and_describe()
    (tmp_path / "study.json").write_text("[]")
    with pytest.raises(ValueError, match=r"study.json cannot be read: choose another"):
        Study(tmp_path, (PHANTOM,), FORMS, {}, (0,)).check_and_describe()


def test_two_data_sets_of_one_name_are_refused(tmp_path):
    folders = [write_folder(tmp_path / parent / "iu", 2) for parent in ("a", "b")]
    with pytest.raises(ValueError, match="^Two data sets of one study have the name iu: rename one"):
        Study.of(tmp_path, [str(folder) for folder in folders], FORMS, {}, (0,))


def test_the_commands_of_a_cell(tmp_path):
    real = Source("reports", "reports", "indiana", "validation", ("deletion",))
    study = Study(tmp_path, (PHANTOM, real), FORMS, {"max_steps": "2"}, (7,), ("boxes",))
    plain, ceiling = ([(step.name, step.command[2:]) for step in study.steps(cell)] for cell in study.cells[:2])
    assert [name for name, _ in plain] == ["training", "evaluation", "words"]
    assert [name for name, _ in ceiling] == ["training", "evaluation"]
    words = " ".join(plain[0][1])
    assert (
        "--max_steps 2 --token_entropy_weight 0 --patch_entropy_weight 0 --evidence_entropy_weight 0 --seed 7" in words
    )
    assert plain[1][1][1:] == [
        *("--data", "phantom", "--split", "test", "--analyses", "grounding", "deletion"),
        *("--output_dir", str(tmp_path / "phantom" / "none" / "seed-7" / "evaluation")),
    ]
    assert "--analyses grounding --output_dir" in " ".join(ceiling[1][1])
    evidence = Study(tmp_path, (PHANTOM, real), {"evidence": tier_study.FORMS["evidence-0.1"]}, {}, (7,))
    for source, patches in ((PHANTOM, "55"), (real, "14")):  # of 196 and 49
        words = evidence.training_words(source, "evidence")
        assert words[words.index("--evidence_patches") + 1] == patches
    plain, ceiling = study.cells[2:]
    assert [step.name for step in study.steps(plain)] == ["training", "evaluation", "grounding on boxes"]
    assert "--analyses" not in study.steps(ceiling)[1].command


@pytest.fixture
def commands(monkeypatch) -> list[list[str]]:
    """The commands that a study runs; each writes its file, except those of a form named `broken`."""
    ran = []

    def run(self, command, log):
        ran.append(command)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("some progress\ntrain_tier.py: error: it broke.\n")
        (log.parent / "model").mkdir(exist_ok=True)
        return int("broken" in str(log))

    monkeypatch.setattr(Processes, "run", run)
    return ran


def test_finished_cells_are_not_run_again_interrupted_ones_start_again(tmp_path, commands):
    study = Study(tmp_path, (PHANTOM,), {"none": {}}, {}, (0, 1))
    first, second = study.cells
    assert run_cells(study, 2, 1) == {} and len(commands) == 6
    for cell in study.cells:
        study.measured_folder(cell).mkdir()
        (study.measured_folder(cell) / "metrics.json").write_text("{}")
        study.words_folder(cell).mkdir()
        (study.words_folder(cell) / "metrics.json").write_text("{}")
    run_cells(study, 1, 1)
    assert len(commands) == 6
    (second.folder / TRAINED).unlink()  # as if the training had been interrupted
    (second.folder / "model" / "half").touch()
    run_cells(study, 1, 1)
    scripts = [command[1].rpartition("/")[2] for command in commands[6:]]
    assert scripts == ["train_tier.py", "eval_zeroshot.py", "measure_maps.py"]
    assert first.is_trained and second.is_trained and not (second.folder / "model" / "half").exists()


def test_a_failed_cell_is_reported_and_the_others_run(tmp_path, commands):
    study = Study(tmp_path, (PHANTOM,), {"broken": {}, "none": {}}, {}, (0,))
    broken, whole = study.cells
    failures = run_cells(study, 1, 1)
    log = broken.folder / "training.log"
    assert failures == {broken: Failure("training", "train_tier.py: error: it broke.", log)}
    assert whole.is_trained and not broken.is_trained


def test_a_stopped_study_starts_nothing_and_a_process_has_few_threads(tmp_path):
    processes = Processes(3)
    command = [sys.executable, "-c", "import os; print(os.environ['OMP_NUM_THREADS']); raise SystemExit(4)"]
    assert processes.run(command, tmp_path / "a" / "log") == 4
    assert study_runs.last_line(tmp_path / "a" / "log") == "3"
    processes.stop()
    cell = Cell(PHANTOM, "none", 0, tmp_path / "cell")
    assert run_cell(Study(tmp_path, (PHANTOM,), {"none": {}}, {}, (0,)), cell, processes) is None
    assert not cell.is_trained


@pytest.mark.slow
def test_a_small_study_by_the_real_commands(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tier_study, "FORMS", {"none": tier_study.FORMS["none"], "paper": tier_study.FORMS["paper"]})
    words = ["--output_dir", str(tmp_path / "study"), "--data", "phantom:num_images=96,image_size=64", "--seeds", "0"]
    options = dict(zip((word[2:] for word in QUICK[2::2]), QUICK[3::2], strict=True)) | {"text_warmup_epochs": "0"}
    own = ("report_to", "disable_tqdm")
    words += ["--options", *(f"{name}={value}" for name, value in options.items() if name not in own)]
    tier_study.main(words)
    cells = pd.read_parquet(tmp_path / "study" / "cells.parquet")
    values = cells[cells["form"] == "paper"].set_index("measure")["value"]
    assert 0 <= values["auroc"] <= 1 and 0 <= values["pointing_contribution"] <= 1 and values["training_seconds"] > 0
    assert values.notna().all()
    differences = pd.read_parquet(tmp_path / "study" / "differences.parquet")
    assert set(differences["form"]) == {"paper"} and (differences["n_seeds"] == 1).all()
    printed = capsys.readouterr().out
    assert "Maps of contributions, trained on phantom" in printed and "study.md" in printed
    monkeypatch.setattr(Processes, "run", lambda *_: pytest.fail("a finished cell is run again"))
    tier_study.main(words)
