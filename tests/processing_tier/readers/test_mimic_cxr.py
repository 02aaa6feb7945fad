import gzip
import logging
import math
import zipfile

import pytest
from archive_files import no_split

from processing_tier.readers.mimic_cxr import MAX_REPORT_BYTES, read_mimic_cxr, read_mimic_cxr_jpg
from processing_tier.records.schema import check_disjoint_patients, finding_columns

# dicom_id, study_id, subject_id, split, ViewPosition
IMAGES = (
    ("02aa804e-bde0afdd", "50414267", "10000032", "train", "PA"),
    ("174413ec-4ec4c1f7", "50414267", "10000032", "train", "LATERAL"),
    ("2a2277a9-b0ded155", "53189527", "10000032", "train", "AP AXIAL"),
    ("e084de3b-be89b11e", "53911762", "10000764", "train", ""),
    ("68b5c4b1-227d0485", "57375967", "11000898", "train", "XTABLE LATERAL"),
    ("fffabebf-74fd3a1f", "57375967", "11000898", "train", "LL"),
    ("aaaaaaaa-00000001", "58000001", "12000011", "validate", "AP"),
    ("bbbbbbbb-00000002", "58000002", "12000012", "test", "AP LLD"),
)
REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___F with cough.

 FINDINGS:

 The lungs are clear.
 No effusion.

 IMPRESSION:

 No acute process.  Compared with ___.
"""
REPORTS = {
    "50414267": REPORT,
    "53189527": REPORT.split(" IMPRESSION")[0],
    "58000001": "No change.",
    "58000002": REPORT.replace("\n", "\r\n"),
}
LABELS = {"50414267": "1.0,,,,,,,,,,0.0,,,", "53189527": ",,1.0,,,-1.0,,,,,,,,", "58000002": ",,,,,,,,-1.0,,,,,1.0"}
HEADER = (
    "subject_id,study_id,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,"
    "Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices\n"
)
SUBJECTS = {study: subject for _, study, subject, _, _ in IMAGES}


def folder_of(study: str) -> str:
    return f"files/p{SUBJECTS[study][:2]}/p{SUBJECTS[study]}/s{study}"


def write(path, text: str) -> None:
    """A table, gzipped where its name says so, with the line ends of Windows in the plain ones."""
    data = text.encode() if path.suffix == ".gz" else text.replace("\n", "\r\n").encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_tables(root, ending: str) -> None:
    rows = "".join(f"{dicom},{study},{subject},{split}\n" for dicom, study, subject, split, _ in IMAGES)
    write(root / f"mimic-cxr-2.0.0-split.csv{ending}", "dicom_id,study_id,subject_id,split\n" + rows)
    rows = "".join(f"{dicom},{subject},{study},CHEST,{view},3056,2544\n" for dicom, study, subject, _, view in IMAGES)
    header = "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns\n"
    write(root / f"mimic-cxr-2.0.0-metadata.csv{ending}", header + rows)
    rows = "".join(f"{SUBJECTS[study]},{study},{values}\n" for study, values in LABELS.items())
    write(root / f"mimic-cxr-2.0.0-chexpert.csv{ending}", HEADER + rows)
    write(root / f"mimic-cxr-2.0.0-negbio.csv{ending}", HEADER + rows.replace("-1.0", "0.0"))
    test = "study_id,Atelectasis,Airspace Opacity,Support Devices\n58000002,0.0,1.0,1.0\n"
    write(root / "mimic-cxr-2.1.0-test-set-labeled.csv", test)


def write_images(root, suffix: str) -> None:
    for dicom, study, *_ in IMAGES:
        (root / folder_of(study)).mkdir(parents=True, exist_ok=True)
        (root / folder_of(study) / f"{dicom}{suffix}").touch()


def write_reports(root) -> None:
    for study, report in REPORTS.items():
        (root / folder_of(study)).parent.mkdir(parents=True, exist_ok=True)
        (root / f"{folder_of(study)}.txt").write_bytes(report.encode())


def write_zip(path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("files/", "")
        for study, report in REPORTS.items():
            archive.writestr(f"{folder_of(study)}.txt", report)


@pytest.fixture(params=["", ".gz"])
def root(request, tmp_path):
    root = tmp_path / "physionet.org" / "files" / "mimic-cxr-jpg" / "2.1.0"
    root.mkdir(parents=True)
    write_tables(root, request.param)
    write_images(root, ".jpg")
    write_zip(root / "mimic-cxr-reports.zip")
    return root


def test_jpg(root, caplog):
    train, validation, test = (read_mimic_cxr_jpg(root, split) for split in ("train", "validation", "test"))
    assert caplog.records == []
    check_disjoint_patients(train=train, validation=validation, test=test)
    assert (len(train), len(validation), len(test)) == (6, 1, 1) and validation["split"][:] == ["validation"]
    assert train["view"][:] == ["PA", "LATERAL", "AP", "OTHER", "LATERAL", "LATERAL"] and test["view"][:] == ["AP"]
    assert train["image_id"][:3] == ["02aa804e-bde0afdd", "174413ec-4ec4c1f7", "2a2277a9-b0ded155"]
    assert train["study_id"][:3] == ["50414267", "50414267", "53189527"] and train["patient_id"][2] == "10000032"
    assert train["image"][0]["path"] == str(root / folder_of("50414267") / "02aa804e-bde0afdd.jpg")
    assert train["impression"][:4] == ["No acute process. Compared with ___."] * 2 + ["", ""]
    assert train["findings"][:4] == ["The lungs are clear. No effusion."] * 3 + [""]
    assert (validation["findings"][:], validation["impression"][:]) == (["No change."], [""])  # no headings
    assert train["report"][0] == REPORT.strip() and train["report"][3] == ""
    assert test["report"][:] == [REPORT.strip()]  # Windows line ends are gone
    assert finding_columns(train)[0] == "No Finding" and len(finding_columns(train)) == 14
    assert train["Edema"][2] == -1 and train["Cardiomegaly"][2] == 1 and train["Pleural Effusion"][0] == 0
    assert math.isnan(train["Edema"][0]) and math.isnan(train["No Finding"][3])  # a study without a row of labels


def test_labels(root):
    assert read_mimic_cxr_jpg(root, "train", labels="negbio")["Edema"][2] == 0
    test = read_mimic_cxr_jpg(root, "test", labels="radiologist")
    assert sorted(finding_columns(test)) == ["Atelectasis", "Lung Opacity", "Support Devices"]
    assert test["Atelectasis"][:] == [0] and test["Lung Opacity"][:] == [1]
    (root / "mimic-cxr-2.1.0-test-set-labeled.csv").write_text("study_id,Nodule\n58000002,1.0\n")
    with pytest.raises(ValueError, match="mimic_cxr_jpg: the table of labels=radiologist has no finding; is it the"):
        read_mimic_cxr_jpg(root, "test", labels="radiologist")
    assert finding_columns(read_mimic_cxr_jpg(root, "test", labels="none")) == []
    for labels, message in [
        ("chexbert", "mimic_cxr_jpg: labels are 'chexbert'; choose chexpert, negbio, radiologist or none."),
        (
            "radiologist",
            "mimic_cxr_jpg: the radiologists labelled the test split only; leave labels out for 'train'.",
        ),
    ]:
        with pytest.raises(ValueError) as error:
            read_mimic_cxr_jpg(root, "train", labels=labels)
        assert str(error.value) == message


def test_reports_as_zip_as_tree_and_elsewhere(root, tmp_path, caplog):
    expected = read_mimic_cxr_jpg(root, "train").to_pandas()
    (root / "mimic-cxr-reports.zip").rename(tmp_path / "r.zip")
    elsewhere = read_mimic_cxr_jpg(root, "train", reports=tmp_path / "r.zip")
    write_reports(tmp_path / "mimic-cxr-reports")
    extracted = read_mimic_cxr_jpg(root, "train", reports=tmp_path / "mimic-cxr-reports")
    assert caplog.records == []
    without = read_mimic_cxr_jpg(root, "train")
    assert set(without["report"]) == {""} == set(without["impression"])
    assert caplog.messages == [
        "mimic_cxr_jpg: the folder has no reports (mimic-cxr-reports.zip), so the texts are empty. Get the reports "
        "from https://physionet.org/content/mimic-cxr/ and name them with the option reports."
    ]
    write_reports(root)
    beside = read_mimic_cxr_jpg(root, "train")
    (tmp_path / "r.zip").rename(tmp_path / "mimic-cxr-reports.zip")
    in_folder = read_mimic_cxr_jpg(root, "train", reports=tmp_path)
    assert all(dataset.to_pandas().equals(expected) for dataset in (elsewhere, extracted, beside, in_folder))
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="none: the reports do not exist; name mimic-cxr-reports.zip or the folder"):
        read_mimic_cxr_jpg(root, "train", reports=tmp_path / "none")
    with pytest.raises(ValueError) as error:
        read_mimic_cxr_jpg(root, "train", reports=tmp_path / "none.zip")
    assert str(error.value) == (
        f"{tmp_path / 'none.zip'}: the reports do not exist; name mimic-cxr-reports.zip or the folder of its files."
    )


def test_dicom(tmp_path, root):
    dicom = root.parents[1] / "mimic-cxr" / "2.1.0"
    write_images(dicom, ".dcm")
    write_reports(dicom)
    train = read_mimic_cxr(dicom, "train")  # the tables of MIMIC-CXR-JPG are found beside it
    expected = read_mimic_cxr_jpg(root, "train")
    assert train["image"][0]["path"] == str(dicom / folder_of("50414267") / "02aa804e-bde0afdd.dcm")
    assert train.remove_columns("image").to_pandas().equals(expected.remove_columns("image").to_pandas())
    dicom = dicom.rename(tmp_path / "elsewhere")
    assert len(read_mimic_cxr(dicom, "test", tables=root)) == 1
    with pytest.raises(ValueError) as error:
        read_mimic_cxr(dicom, "test")
    assert str(error.value) == (
        f"{dicom}: mimic-cxr-2.0.0-split.csv* of mimic_cxr is not in this folder; get it from "
        "https://physionet.org/content/mimic-cxr-jpg/."
    )


def test_repeated_rows_and_missing_images(root, caplog):
    for path in root.glob("*-split.csv*"):
        path.unlink()
    rows = "".join(f"{dicom},{study},{subject},{split}\n" for dicom, study, subject, split, _ in IMAGES)
    write(root / "mimic-cxr-2.0.0-split.csv", "dicom_id,study_id,subject_id,split\n" + rows + rows)
    (root / folder_of("50414267") / "174413ec-4ec4c1f7.jpg").unlink()
    with caplog.at_level(logging.WARNING):
        train = read_mimic_cxr_jpg(root, "train")
    assert len(train) == 5
    assert caplog.messages == [
        "mimic_cxr_jpg, split train: 6 of 12 rows repeat a 'dicom_id': dropped.",
        "mimic_cxr_jpg, split train: 1 of 6 images are missing, the first is "
        "files/p10/p10000032/s50414267/174413ec-4ec4c1f7.jpg: left out.",
    ]


def test_wrong_folders_and_missing_files(root, tmp_path):
    parent, inside = root.parent, root / "files"
    for folder in (parent, parent.parent, inside):
        with pytest.raises(ValueError) as error:
            read_mimic_cxr_jpg(folder, "train")
        assert str(error.value) == f"{folder}: this is not the folder of mimic_cxr_jpg, but {root} is; name that one."
    with pytest.raises(ValueError) as error:
        read_mimic_cxr_jpg(tmp_path / "none", "train")
    assert str(error.value) == (
        f"{tmp_path / 'none'}: the folder does not exist; name the folder that holds mimic_cxr_jpg."
    )
    with pytest.raises(ValueError) as error:
        read_mimic_cxr_jpg(root, "validate")
    assert str(error.value) == no_split("mimic_cxr_jpg", "validate", "train, validation, test")
    for path in root.glob("*-metadata.csv*"):
        path.unlink()
    with pytest.raises(ValueError) as error:
        read_mimic_cxr_jpg(root, "train")
    assert str(error.value) == (
        f"{root}: mimic-cxr-2.0.0-metadata.csv* of mimic_cxr_jpg is not in this folder; get it from "
        "https://physionet.org/content/mimic-cxr-jpg/."
    )
    write(root / "mimic-cxr-2.0.0-metadata.csv", "dicom_id,subject_id,study_id,Rows\n")
    with pytest.raises(ValueError) as error:
        read_mimic_cxr_jpg(root, "train")
    assert str(error.value) == (
        "mimic-cxr-2.0.0-metadata.csv: column 'ViewPosition' is missing; is this the file of the archive, unchanged?"
    )


def test_reports_are_bounded(root, tmp_path):
    study = f"{folder_of('50414267')}.txt"
    with zipfile.ZipFile(root / "mimic-cxr-reports.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(study, b" " * (MAX_REPORT_BYTES + 1))
    message = f"a member is larger than {MAX_REPORT_BYTES:,} bytes; it is not the archive as shipped."
    with pytest.raises(ValueError) as error:
        read_mimic_cxr_jpg(root, "train")
    assert str(error.value) == f"mimic-cxr-reports.zip: {message}"
    data = bytearray((root / "mimic-cxr-reports.zip").read_bytes())
    data[len(study) + 40] ^= 255
    (root / "mimic-cxr-reports.zip").write_bytes(data)
    with pytest.raises(
        ValueError, match=r"^mimic-cxr-reports.zip: a member cannot be read \(\w+\); download it again.$"
    ):
        read_mimic_cxr_jpg(root, "train")
    (root / "mimic-cxr-reports.zip").write_bytes(b"<html>")
    with pytest.raises(ValueError) as error:
        read_mimic_cxr_jpg(root, "train")
    assert str(error.value) == "mimic-cxr-reports.zip: the file is not a readable zip archive; download it again."
    (tmp_path / "reports" / study).parent.mkdir(parents=True)
    (tmp_path / "reports" / study).write_bytes(b" " * (MAX_REPORT_BYTES + 1))
    with pytest.raises(ValueError) as error:
        read_mimic_cxr_jpg(root, "train", reports=tmp_path / "reports")
    assert str(error.value) == (
        f"s50414267.txt: the file is larger than {MAX_REPORT_BYTES:,} bytes; it is not the file as shipped."
    )


def test_truncated_gzip(root):
    (root / "mimic-cxr-2.0.0-chexpert.csv").unlink(missing_ok=True)
    write(root / "mimic-cxr-2.0.0-chexpert.csv.gz", HEADER * 100)
    path = root / "mimic-cxr-2.0.0-chexpert.csv.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError) as error:
        read_mimic_cxr_jpg(root, "train")
    assert str(error.value) == f"{path}: the file is not a readable csv table; export it again."


def test_reports_that_are_links_out_of_the_archive(root, tmp_path):
    (root / "mimic-cxr-reports.zip").unlink()
    write_reports(root)
    (tmp_path / "secret.txt").write_text("IMPRESSION: of somebody else")
    report = root / f"{folder_of('50414267')}.txt"
    report.unlink()
    report.symlink_to(tmp_path / "secret.txt")
    with pytest.raises(ValueError, match="^s50414267.txt: the path leaves the image folder; name the folder that"):
        read_mimic_cxr_jpg(root, "train")


def test_what_lies_beside_a_table_is_not_taken_for_it(root):
    expected = read_mimic_cxr_jpg(root, "train")["image_id"][:]
    for name in ("split.csv.bak", "split.csv~", "split.csv.gz.1", "split.csv.old"):
        (root / f"mimic-cxr-2.0.0-{name}").write_text("dicom_id,study_id,subject_id,split\n")
    assert read_mimic_cxr_jpg(root, "train")["image_id"][:] == expected
