"""The published numbers of CheXpert's radiologists beside a table that another program wrote."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score, matthews_corrcoef

from compare_results import main
from evaluation_tier.analyses.outside_predictions import compare_predictions, read_outside_predictions
from evaluation_tier.scoring.protocols import PROTOCOLS
from processing_tier.readers.chexpert import CHEXPERT_FINDINGS

STUDIES = [f"CheXpert-v1.0/test/patient{64741 + i}/study1" for i in range(120)]
FINDINGS = ["Edema", "Pleural Effusion"]


@pytest.fixture
def archive(tmp_path):
    """The labels of a test set in the layout of cheXpert-test-set-labels."""
    generator = np.random.default_rng(0)
    truth = pd.DataFrame(generator.random((120, 14)) < 0.3, columns=list(CHEXPERT_FINDINGS)).astype(int)
    root = tmp_path / "cheXpert-test-set-labels"
    (root / "radiologists").mkdir(parents=True)
    truth.assign(Study=STUDIES).to_csv(root / "groundtruth.csv", index=False)
    for reader in ("bc4", "bc6", "bc8"):
        wrong = generator.random(truth.shape) < 0.15
        (truth.astype(bool) ^ wrong).astype(int).assign(Study=STUDIES).to_csv(
            root / "radiologists" / f"{reader}.csv", index=False
        )
    return root


def scores_of(archive, seed: int) -> pd.DataFrame:
    truth = pd.read_csv(archive / "groundtruth.csv")[FINDINGS]
    return truth + np.random.default_rng(seed).normal(0, 0.7, truth.shape)


@pytest.mark.slow
def test_the_numbers_are_those_of_scikit_learn(archive, tmp_path):
    truth, scores, validation = pd.read_csv(archive / "groundtruth.csv"), scores_of(archive, 1), scores_of(archive, 2)
    table, other = tmp_path / "mine.csv", tmp_path / "valid.parquet"
    renamed = scores.set_axis(["edema", "Effusion"], axis=1)  # as another program may call them
    renamed.assign(Study=STUDIES, note="x").iloc[::-1].to_csv(table, index=False)
    pd.concat([validation.add_prefix("score_"), truth[FINDINGS].add_prefix("label_")], axis=1).to_parquet(other)
    for protocol in ("chexzero", "tier"):
        found = compare_predictions(table, archive, PROTOCOLS[protocol], other, num_resamples=50)
        rule = "highest MCC on the table valid.parquet" + "; for F1 the highest F1 there" * (protocol == "tier")
        assert found["protocol"]["thresholds"] == found["radiologists"]["thresholds"] == rule
        for finding in FINDINGS:
            candidates, at = np.sort(validation[finding])[::-1], {}
            for name, function in (("mcc", matthews_corrcoef), ("f1", f1_score)):
                values = [function(truth[finding], validation[finding] >= candidate) for candidate in candidates]
                at[name] = candidates[np.argmax(values)]
            at["f1"] = at["f1"] if protocol == "tier" else at["mcc"]
            result = found["radiologists"]["findings"][finding]
            for name, function in (("mcc", matthews_corrcoef), ("f1", f1_score)):
                model = function(truth[finding], scores[finding] >= at[name])
                readers = [
                    pd.read_csv(archive / "radiologists" / f"{name}.csv")[finding] for name in ("bc4", "bc6", "bc8")
                ]
                expected = np.mean([function(truth[finding], calls) for calls in readers])
                assert result["model"][name] == pytest.approx(model)
                assert result["difference"][name] == pytest.approx(model - expected)


def test_several_images_of_a_study_and_own_labels(archive, tmp_path):
    scores, truth = scores_of(archive, 1), pd.read_csv(archive / "groundtruth.csv")[FINDINGS]
    table = pd.concat([scores.add_prefix("score_"), truth.add_prefix("label_")], axis=1)
    table = table.assign(Path=[f"{study}/view1_frontal.jpg" for study in STUDIES])
    table.to_csv(tmp_path / "one.csv", index=False)
    twice = pd.concat([table, table.assign(Path=table["Path"].str.replace("view1", "view2"))])
    twice.iloc[120:, :2] += 0.4
    twice.iloc[:120, :2] -= 0.4  # the mean stays
    twice.to_csv(tmp_path / "two.csv", index=False)
    (archive / "groundtruth.csv").unlink()
    one, two = (
        compare_predictions(tmp_path / name, archive, PROTOCOLS["tier"], num_resamples=50)
        for name in ("one.csv", "two.csv")
    )
    assert one["n_images"] == two["n_images"] == one["radiologists"]["n_studies"] == 120
    assert one["radiologists"]["mean"]["model"] == pytest.approx(two["radiologists"]["mean"]["model"])
    assert one["protocol"]["thresholds"].startswith("highest MCC on the table one.csv itself (optimistic)")


def test_the_command(archive, tmp_path, capsys):
    scores_of(archive, 1).assign(study_id=STUDIES).to_csv(tmp_path / "mine.csv", index=False)
    arguments = [str(tmp_path / "mine.csv"), "--radiologists", str(archive), "--n_bootstrap", "50"]
    main([*arguments, "--protocol", "tier", "--output_dir", str(tmp_path / "out")])
    text = capsys.readouterr().out
    assert "beside the mean of 3 radiologists who read the same 120 studies" in text
    assert "Thresholds: highest MCC on the table mine.csv itself (optimistic); for F1 the highest F1 there." in text
    metrics = json.loads((tmp_path / "out" / "radiologists.json").read_text())
    assert metrics["radiologists"]["readers"] == ["bc4", "bc6", "bc8"] and list(metrics["findings"]) == FINDINGS
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".json", ".md", ".tex"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop(columns="study_id"), "mine.csv does not name the studies: add a column study_id"),
        (lambda table: table.assign(study_id="p1"), "'p1' in 'study_id' is not a study of CheXpert"),
        (lambda table: table[["study_id"]], "has no scores of CheXpert's findings: name the columns score_Edema"),
        (
            lambda table: table.assign(Edema=[None] * 2 + [1.0] * 118),
            "2 scores are not finite numbers, for example in 'Edema'",
        ),
        (lambda table: table.assign(effusion=1.0), "two columns are scores of 'Pleural Effusion'"),
        (
            lambda table: table.assign(label_Edema=1),
            "has no column label_Pleural Effusion, but labels of other findings",
        ),
        (lambda table: table.replace(STUDIES[0], "patient1/study9"), "1 of the 120 studies of mine.csv have no label"),
    ],
)
def test_tables_that_do_not_do_are_refused(archive, tmp_path, capsys, change, message):
    table = scores_of(archive, 1).assign(study_id=STUDIES)
    change(table).to_csv(tmp_path / "mine.csv", index=False)
    with pytest.raises(SystemExit) as exit_:
        main([str(tmp_path / "mine.csv"), "--radiologists", str(archive), "--output_dir", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert exit_.value.code == 2 and message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_options_that_have_no_effect_are_refused(tmp_path, capsys):
    for arguments, message in (
        (["a", "b", "--radiologists", "r"], "leave out B"),
        (["a", "b", "--protocol", "tier"], "--protocol has no effect without --radiologists"),
        (["a"], "B is missing: name a second evaluation"),
        (["a", "--radiologists", "r", "--protocol", "teir"], "The protocol 'teir' is not known: did you mean 'tier'"),
        (["a", "--radiologists", "r", "--exclude_trained"], "--exclude_trained has no effect with --radiologists"),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert message in capsys.readouterr().err


def test_scores_with_a_prefix_win(tmp_path):
    pd.DataFrame({"score_Edema": [0.1, 0.2], "Edema": [5, 6]}).to_csv(tmp_path / "a.csv")
    assert read_outside_predictions(tmp_path / "a.csv", with_studies=False).scores["Edema"].tolist() == [0.1, 0.2]
