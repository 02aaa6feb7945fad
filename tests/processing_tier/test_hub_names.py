import pytest

from processing_tier.hub_names import check_hub_name
from processing_tier.readers import read_records


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "runs" / "phantom" / "checkpoint-12").mkdir(parents=True)
    (tmp_path / "indiana").mkdir()
    (tmp_path / "indiana" / "labels.csv").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("runs/phantmo", "did you mean runs/phantom?"),
        ("rusn/phantom", "did you mean runs/phantom?"),
        ("runs/phantom/checkpoint-21", "did you mean runs/phantom/checkpoint-12?"),
        ("runs/else", "name one on this disk, or a model on the Hub (owner/name)."),
        ("indana", "did you mean indiana?"),
        ("indana/lables", "did you mean indiana/labels.csv?"),
        ("./nowhere", "name one on this disk, or a model on the Hub (owner/name)."),
        ("a/b/c", "name one on this disk, or a model on the Hub (owner/name)."),
        ("~/model", "name one on this disk, or a model on the Hub (owner/name)."),
        ("C:\\runs\\model", "name one on this disk, or a model on the Hub (owner/name)."),
        ("tniy", "did you mean tiny?"),
    ],
)
def test_what_looks_like_a_path_is_never_sent(here, name, remedy):
    with pytest.raises(ValueError) as error:
        check_hub_name(name, "model", known=["tiny", "resnet-tiny"])
    assert str(error.value) == f"The model {name} is not on this disk, and was not looked up on the Hub: {remedy}"


@pytest.mark.parametrize("name", ["runs/phantmo", "prepared/mimic", "models/clip"])
def test_the_folders_of_the_documentation_are_never_sent_from_elsewhere_either(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"The model {name} is not on this disk, and was not looked up on the Hub"):
        check_hub_name(name, "model")


def test_names_on_the_hub_and_what_is_there_pass(here):
    for name in ("microsoft/resnet-50", "bert-base-uncased", "runs/phantom", here / "runs"):
        check_hub_name(name, "model")


def test_a_data_set_is_asked_for_likewise(here):
    with pytest.raises(ValueError, match="The data set runs/phantmo is not on this disk, and was not looked up"):
        read_records("runs/phantmo", "train")
