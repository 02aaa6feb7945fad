"""The notebooks of examples/: clean, and executed on the phantom."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_there_are_four():
    assert len(NOTEBOOKS) == 4


@notebook
def test_no_outputs_and_nothing_of_a_machine(path):
    """House paths are checked with those of all texts, in `test_house.py`."""
    content = json.loads(path.read_text(encoding="utf-8"))
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    assert content["metadata"] == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    assert content["cells"][0]["cell_type"] == "markdown" and content["cells"][0]["source"][0].startswith("# ")
    assert len({cell["id"] for cell in content["cells"]}) == len(content["cells"])
    for cell in content["cells"]:
        assert cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None


@notebook
def test_links_lead_somewhere(path):
    text = "".join(
        line
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == "markdown"
        for line in cell["source"]
    )
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert (path.parent / link).is_file(), link


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the notebooks run, one after the other: the first trains the model that two others use."""
    return tmp_path_factory.mktemp("notebooks")


@pytest.mark.slow
@notebook
def test_it_runs(path, folder, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # those of transformers, which loads weights
    monkeypatch.setenv("PYTHONWARNINGS", "ignore:IProgress not found")  # without ipywidgets
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    where = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(book, timeout=3600, kernel_name="python3", resources=where).execute()
    nbformat.write(book, folder / path.name)  # with its outputs, to look at
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    assert outputs and all(output.output_type != "error" for output in outputs)
    text = "".join(output.get("text", "") for output in outputs)
    assert "\r" not in text and str(ROOT) not in text.replace(str(folder), "")
    for expected in EXPECTED[path.stem]:
        assert expected in text, text
    assert pictures(outputs) == PICTURES[path.stem]


EXPECTED = {
    "1_train_evaluate_look": ("eval_auroc 0.", "Mean of ", "report.html"),
    "2_one_image": ("Pleural Effusion  0.", "Left 0.", "Right 0."),
    "3_own_table": (
        "train(): unknown option 'num_epochs'; did you mean 'num_train_epochs'?",
        "Best checkpoint: checkpoint-",
        "split 'held_out'",
        "so 'train' would be all of its images",
    ),
    "4_compare_models": ("notebook-short 0.", "B minus A (95 % CI)"),
}
PICTURES = {"1_train_evaluate_look": 3, "2_one_image": 2, "3_own_table": 0, "4_compare_models": 1}


def pictures(outputs) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs)
