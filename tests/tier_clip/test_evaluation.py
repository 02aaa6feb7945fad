"""`evaluate`, the function: the same options, checks and results as those of the command."""

import json

import numpy as np
import pandas as pd
import pytest
from eval_command import PHANTOM, run, save_two_models, write_table

import eval_zeroshot
from tier_clip import evaluate
from tier_clip.evaluation import parse

QUICK = {"min_positives": 5, "n_bootstrap": 5}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return save_two_models(tmp_path_factory.mktemp("models"))


def test_an_evaluation_returns_what_it_wrote(models, tmp_path, capsys):
    result = evaluate(models[0], PHANTOM, output_dir=tmp_path / "python", **QUICK)
    written = json.loads((tmp_path / "python" / "metrics.json").read_text())
    assert result.metrics["mean"]["auroc"] == written["mean"]["auroc"]
    assert result.output_dir == tmp_path / "python"
    assert result.output_dir / "report.html" in result.files and all(path.is_file() for path in result.files)
    pd.testing.assert_frame_equal(
        result.predictions.reset_index(drop=True), pd.read_parquet(tmp_path / "python" / "predictions.parquet")
    )
    assert str(result).endswith(f"\n\nLook at it in a browser: {result.output_dir / 'report.html'}")
    assert capsys.readouterr().out == ""
    out, _ = run(
        *[models[0], "--data", PHANTOM, "--min_positives", 5, "--n_bootstrap", 5],
        *["--output_dir", tmp_path / "command"],
        capsys=capsys,
    )
    assert out.replace("command", "python").strip() == str(result).strip()


def test_each_model_by_its_name(models, tmp_path):
    results = evaluate(models, PHANTOM, each=True, output_dir=tmp_path, **QUICK)
    assert [result.metrics["models"] for result in results.values()] == [[name] for name in results]
    means = [result.metrics["mean"]["auroc"] for result in results.values()]
    both = evaluate(models, PHANTOM, output_dir=tmp_path / "ensemble", **QUICK)
    assert len(set(means)) == 2 and both.metrics["mean"]["auroc"] not in means


def test_a_table_with_columns_as_mappings(models, tmp_path):
    table = write_table(tmp_path, Edema=["yes", "no"] * 20)
    options = {"columns": {"image": "image"}, "label_values": {"yes": 1, "no": 0, "unknown": None}}
    result = evaluate(models[0], table, findings=["Edema"], output_dir=tmp_path / "out", **options, **QUICK)
    assert result.metrics["findings"]["Edema"]["n_positive"] == 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_positive": 1}, "evaluate(): unknown option 'min_positive'; did you mean 'min_positives'?"),
        ({"figures": "yes"}, "evaluate(): figures='yes' is not a truth value; write True or False."),
        ({"findings": "Edema"}, "evaluate(): findings='Edema' is not a list of texts; write for example ['a', 'b']."),
        ({"findings": ["--overwrite"]}, "evaluate(): findings holds '--overwrite', which is not a text, or begins"),
        ({"views": True}, "evaluate(): views=True is not a text or a number."),
        ({"views": "side"}, "argument --views: invalid choice: 'side'"),
        ({"seed": -1}, "--seed must not be negative, but is -1."),
        ({"exclude_trained": True, "include_trained": True}, "not allowed with argument"),
        ({"output_dir": "/proc/x"}, "the folder /proc/x cannot be written: choose another --output_dir."),
    ],
)
def test_what_is_refused(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as error:
        evaluate("runs/absent", "phantom", **options)
    assert message in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_missing_models_are_refused():
    with pytest.raises(ValueError, match="the model is missing"):
        evaluate([], "phantom")


def test_the_arguments_are_those_of_the_command(tmp_path):
    words = ["a", "b", "--each", "--data", "x.csv", "--columns", "image=Path", "--seed", "3", "--analyses", "sparsity"]
    words += ["--include_trained", "--cache_dir", str(tmp_path)]
    options = {"each": True, "columns": {"image": "Path"}, "seed": np.int64(3), "analyses": ("sparsity",)}
    options |= {"include_trained": True, "cache_dir": tmp_path, "figures": False, "split": None}
    assert vars(parse(["a", "b"], {"data": "x.csv", **options})) == vars(eval_zeroshot.parse(words))
