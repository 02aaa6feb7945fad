import json

import numpy as np
import pytest

from evaluation_tier.models.adapters import AdapterName
from evaluation_tier.models.exposure import describe_exposures, find_exposures, find_published, published_models
from processing_tier.readers import READERS
from processing_tier.records.identities import TrainedOn, TrainingSource, family

MEDSIGLIP = "google/medsiglip-448"


def exposure(name, data="mimic_cxr", listed=None, reader=None) -> dict:
    return describe_exposures(find_exposures({name: "m"}, {"m": listed}, data, reader))


def test_every_row_has_a_source_and_leads_somewhere():
    rows = published_models()
    assert len(rows) >= 15
    owners = {name.partition("/")[0] for row in rows.values() for name in row.names if "/" in name}
    assert {"openai", "google", "microsoft", "StanfordAIMI", "Deepnoid"} <= owners
    readers = {family(name) for name in READERS}
    for title, row in rows.items():
        assert row.source and isinstance(row.complete, bool), title
        assert find_published(row.names[0].replace("*", "x"))[0] == row
        for data_set in row.trained_on:  # an archive of a reader is named as its patients are found
            key = data_set.lower().replace("-", "_")
            assert family(key) not in readers or data_set == family(key), (title, data_set)


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("openai/clip-vit-base-patch32", "OpenAI CLIP"),
        ("clip-vit-base-patch32", "OpenAI CLIP"),  # a folder downloaded from the Hub
        ("CheXzero", "CheXzero"),  # what tier-convert calls it
        ("StanfordAIMI/XraySigLIP__vit-l-16-siglip-384__webli", "XraySigLIP"),
        ("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "LAION CLIP"),
        ("google/siglip2-base-patch16-224", "SigLIP"),
        (MEDSIGLIP.upper(), "MedSigLIP"),
        ("someone/clip-vit-base-patch32", None),  # another owner's weights
        ("clip-vit-base-patch32-mine", None),
        ("someone/chexzero", None),
        ("model", None),
    ],
)
def test_names(name, title):
    assert [row.title for row in find_published(name)[:1]] == [title] * (title is not None)


def test_an_archive_of_the_training_is_told(caplog):
    for data in ("mimic_cxr", "mimic_cxr_jpg", "ms_cxr"):
        caplog.clear()
        found = exposure("Deepnoid/RadZero@abc", data)
        assert found["exposure_overlap"] == ["m"]
        assert found["exposure"] == (
            "RadZero was trained on mimic_cxr (github.com/deepnoid-ai/RadZero, README.md and "
            "exp/cxr_pt/configs/radzero.yaml); XrayDINOv2 was trained on mimic_cxr, chexpert, padchest, BIMCV, "
            "CANDID-PTX (github.com/Stanford-AIMI/chexpert-plus, README.md (Model Zoo)); the evaluated data are of "
            "mimic_cxr too, so it may have seen these images or patients"
        )
        assert caplog.messages == [f"The evaluated data may be training data of m: {found['exposure']}."]
    # through the weights that it started from
    assert exposure("Deepnoid/RadZero", "padchest")["exposure_overlap"] == ["m"]


@pytest.mark.parametrize(
    ("name", "data", "end"),
    [
        ("microsoft/rad-dino", "vindr_cxr", "; the evaluated data are of another data set (vindr_cxr)"),
        (MEDSIGLIP, "rsna", "; the evaluated data (chestxray14) are not among those named, which need not be all"),
        (MEDSIGLIP, "own.csv", "; whether the evaluated data were among its training data is not known"),
        (
            "StanfordAIMI/XraySigLIP__x",
            "rsna",
            "; whether the evaluated data were among its training data is not known",
        ),
        ("user/model", "rsna", "the table of published models does not know m"),
    ],
)
def test_what_is_not_known_is_said(name, data, end, caplog):
    found = exposure(name, data)
    assert list(found) == ["exposure"] and found["exposure"].endswith(end)
    assert not caplog.records


def test_a_table_of_a_benchmark_is_of_its_archive():
    assert exposure(MEDSIGLIP, "own.csv", reader="ms_cxr")["exposure_overlap"] == ["m"]
    assert "exposure_overlap" not in exposure(MEDSIGLIP, "own.csv", reader="chexpert")


def test_the_phantom_is_in_no_published_data():
    assert exposure(MEDSIGLIP, "phantom:num_images=40") == {}


def test_a_list_of_training_images_needs_no_table(tmp_path):
    empty = np.empty(0, dtype=np.uint64)
    source = TrainingSource("own.csv", "train", empty, empty)
    assert exposure(tmp_path, "mimic_cxr", TrainedOn((source,))) == {}
    # the initial weights that it does not cover are looked up, each of them
    listed = TrainedOn((source,), ("microsoft/rad-dino", "someone/bert"))
    found = exposure(tmp_path, "mimic_cxr", listed)
    assert found["exposure_overlap"] == ["m"]
    assert "RAD-DINO was trained on mimic_cxr" in found["exposure"]
    assert "; the table of published models does not know someone/bert; " in found["exposure"]
    # with an unknown tower, another archive is no clean bill
    found = exposure(tmp_path, "vindr_cxr", listed)["exposure"]
    assert found.endswith("are not among those named, which need not be all")


def test_a_folder_is_known_by_its_own_name_or_that_in_its_config(tmp_path):
    folder = tmp_path / "medsiglip-448"
    folder.mkdir()
    assert exposure(folder)["exposure_overlap"] == ["m"]
    other = folder.rename(tmp_path / "model")
    assert exposure(other)["exposure"] == "the table of published models does not know m"
    (other / "config.json").write_text(json.dumps({"_name_or_path": MEDSIGLIP}))
    assert exposure(other)["exposure_overlap"] == ["m"]
    for damaged in ("[]", "{", '{"_name_or_path": 3}', '{"_name_or_path": "/home/me/x/y"}'):
        (other / "config.json").write_text(damaged)
        assert exposure(other)["exposure"] == "the table of published models does not know m"


def test_several_models_are_told_apart():
    names = {MEDSIGLIP: MEDSIGLIP, "user/x": "user/x"}
    found = describe_exposures(find_exposures(names, {}, "mimic_cxr"))
    assert found["exposure_overlap"] == [MEDSIGLIP]
    assert found["exposure"].startswith(f"{MEDSIGLIP}: MedSigLIP was trained on mimic_cxr, other")
    assert found["exposure"].endswith("patients. user/x: the table of published models does not know user/x")


def test_the_name_given_to_an_adapter_counts():
    assert exposure(AdapterName("file.py:make=Deepnoid/RadZero"))["exposure_overlap"] == ["m"]
    assert exposure(AdapterName("file.py:make"))["exposure"] == "the table of published models does not know m"
    for name in ("hf-hub:microsoft/BiomedVLP-BioViL-T", "microsoft/BiomedVLP-BioViL-T@main"):  # as OpenCLIP has it
        told = find_exposures({AdapterName(f"mine.py:make={name}"): "m"}, {}, "mimic_cxr")["m"]
        assert told.overlaps and told.told.startswith("BioViL-T was trained on mimic_cxr")
