"""Which records are trained on, and which select the checkpoint."""

import shutil

import numpy as np
import pandas as pd

from processing_tier.phantom.dataset import make_phantom
from training_tier.data.splits import hold_out, load_splits
from training_tier.options.data import DataArguments


def test_held_out_patients_are_never_trained_on():
    records = make_phantom(60, seed=0, image_size=64)
    train, evaluation = hold_out(records, 0.2, seed=3)
    assert not set(train["patient_id"]) & set(evaluation["patient_id"])
    assert len(train) + len(evaluation) == 60
    patients = len(set(records["patient_id"]))
    assert len(set(evaluation["patient_id"])) == round(0.2 * patients)
    again = hold_out(records, 0.2, seed=3)[1]
    assert again["image_id"][:] == evaluation["image_id"][:]
    assert hold_out(records, 0.2, seed=4)[1]["image_id"][:] != evaluation["image_id"][:]


def test_records_without_text_are_left_out(image_folder, tmp_path):
    copy = tmp_path / "data"
    shutil.copytree(image_folder, copy)
    frame = pd.read_csv(copy / "train" / "metadata.csv")
    frame.loc[:3, "impression"] = np.nan
    frame.loc[4, "impression"] = "XXXX ___."
    frame.to_csv(copy / "train" / "metadata.csv", index=False)
    for deidentified, count in (("keep", 20), ("remove", 19)):
        arguments = DataArguments(data=str(copy), eval_split="validation", deidentified=deidentified)
        train, _ = load_splits(arguments, seed=0)
        assert len(train) == count and all(train["impression"])
