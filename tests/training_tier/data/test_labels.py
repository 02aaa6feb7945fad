"""Labels of a training: shares of patients, findings with both classes, batches."""

import pytest
from small_trainings import with_labels

from processing_tier.phantom.dataset import make_phantom
from training_tier.data.labels import LabelledDataset, choose_findings, collate_labelled, take_patients


def test_shares_of_the_patients_are_nested_and_whole():
    records = make_phantom(60, seed=0, image_size=64)
    records = records.remove_columns("patient_id").add_column("patient_id", [f"p{i // 2}" for i in range(60)])
    shares = {fraction: take_patients(records, fraction, seed=3) for fraction in (0.001, 0.1, 0.5, 1.0)}
    patients = [set(share["patient_id"][:]) for share in shares.values()]
    assert [len(share) for share in patients] == [1, 3, 15, 30]
    assert all(smaller < larger for smaller, larger in zip(patients, patients[1:], strict=False))
    assert all(len(share) == 2 * len(chosen) for share, chosen in zip(shares.values(), patients, strict=True))
    assert shares[1.0]["image_id"][:] == records["image_id"][:]
    order = records["image_id"][:]
    assert shares[0.5]["image_id"][:] == [name for name in order if name in set(shares[0.5]["image_id"][:])]
    assert take_patients(records, 0.1, seed=3)["image_id"][:] == shares[0.1]["image_id"][:]
    assert take_patients(records, 0.1, seed=4)["image_id"][:] != shares[0.1]["image_id"][:]


def test_findings_need_both_classes_in_training_and_in_evaluation(phantom, labelled):
    half, few, many = [1.0, 0.0] * 24, [1.0] * 3 + [0.0] * 45, [1.0] * 45 + [0.0] * 3
    train = with_labels(phantom, Consolidation=few, Pneumothorax=many, Edema=half, Cardiomegaly=half)
    labelled = with_labels(labelled, Edema=[0.0] * 24, Cardiomegaly=[1.0, 0.0] * 12)
    learnt, scored = choose_findings(train, labelled, None, min_positives=4)
    assert {"Cardiomegaly", "Edema"} <= set(learnt) and not {"Consolidation", "Pneumothorax"} & set(learnt)
    assert "Cardiomegaly" in scored and "Edema" not in scored and set(scored) < set(learnt)
    assert choose_findings(train, labelled, ["Consolidation"], 4) == (["Consolidation"], ["Consolidation"])
    with pytest.raises(ValueError, match="The finding 'Edema' has no positive image among the 24"):
        choose_findings(train, labelled, ["Edema"], 4)
    with pytest.raises(ValueError, match="The finding 'Edema' has no negative image among the 48"):
        choose_findings(with_labels(phantom, Edema=[1.0] * 48), labelled, ["Edema"], 4)
    with pytest.raises(ValueError, match="No finding has 1000 positives"):
        choose_findings(train, labelled, None, min_positives=1000)
    with pytest.raises(ValueError, match="No finding has 4 positives and as many negatives in the 48 training"):
        unlearnable = dict.fromkeys(["Consolidation", "Pneumothorax"], [-1.0] * 24)
        choose_findings(
            train.select_columns([*train.column_names[:10], "Edema"]), with_labels(labelled, **unlearnable), None, 4
        )


def test_batches_have_labels_and_images_that_do_not_decode_have_none(phantom, processor):
    nan = float("nan")
    records = with_labels(phantom.select(range(3)), Consolidation=[1, -1, 0], Edema=[nan, 0, 1]).map(
        lambda row, i: {"image": {"bytes": b"nothing", "path": None}} if i == 2 else row,
        with_indices=True,
        features=None,
    )
    dataset = LabelledDataset(records, ["Consolidation", "Edema"], image_processor=processor.image_processor)
    batch = collate_labelled([dataset[i] for i in range(3)])
    assert batch["labels"].tolist() == [[1, -100], [-100, 0], [-100, -100]]
    assert batch["pixel_values"].shape == (3, 1, 32, 32) and not batch["pixel_values"][2].any()
    ((index, image_id, error),) = batch["unreadable"]
    assert (index, image_id) == (2, records[2]["image_id"]) and "not" in error and batch["indices"] == [0, 1, 2]
    assert "pixel_values" not in collate_labelled([dataset[2]])
