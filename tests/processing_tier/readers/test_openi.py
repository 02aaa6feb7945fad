import gzip
import io
import math
import shutil
import tarfile

import numpy as np
import pandas as pd
import pytest
from archive_files import no_split

from processing_tier.readers import openi as openi_module
from processing_tier.readers.openi import OPENI_FINDINGS, guess_views, image_key, parse_report, read_openi
from processing_tier.records.schema import finding_columns
from processing_tier.reports.markup import repair_markup

REPORT = """<?xml version="1.0" encoding="utf-8"?>
<eCitation>
   <uId id="CXR{number}"/>
   <MedlineCitation><Article><Abstract>
      <AbstractText Label="COMPARISON">None.</AbstractText>
      <AbstractText Label="INDICATION"/>
      <AbstractText Label="FINDINGS">Heart &lt; normal.\n  Clear &amp; dry.</AbstractText>
      <AbstractText Label="IMPRESSION">{impression}</AbstractText>
   </Abstract></Article></MedlineCitation>
   <MeSH>{mesh}</MeSH>
   {images}
</eCitation>
"""


def make_report(number: int, images=(), mesh=("normal",), impression="No XXXX.") -> bytes:
    images = "".join(f'<parentImage id="{name}"><caption>PA and lateral</caption></parentImage>' for name in images)
    mesh = "".join(f"<major>{term}</major>" for term in mesh)
    return REPORT.format(number=number, images=images, mesh=mesh, impression=impression).encode()


@pytest.fixture
def root(tmp_path):
    reports, images = tmp_path / "ecgen-radiology", tmp_path / "NLMCXR_png"
    reports.mkdir()
    images.mkdir()
    names = ["CXR1_1_IM-0001-3001", "CXR1_1_IM-0001-4001", "CXR2_IM-0652-1001", "CXR10_IM-0002-2001"]
    for name in names:
        (images / f"{name}.png").touch()
    (reports / "1.xml").write_bytes(make_report(1, names[:2]).replace(b"\n", b"\r\n"))
    mesh = ("Cardiomegaly/borderline", "Opacity/lung/base/left/mild")
    (reports / "10.xml").write_bytes(make_report(10, names[3:], mesh, impression=""))
    (reports / "2.xml").write_bytes(make_report(2, names[2:3], ("No Indexing",)))
    (reports / "3.xml").write_bytes(make_report(3))
    (tmp_path / "indiana_projections.csv").write_bytes(
        b"uid,filename,projection\r\n1,1_IM-0001-3001.dcm.png,Lateral\r\n1,1_IM-0001-4001.dcm.png,Frontal\r\n"
        b"10,10_IM-0002-2001.dcm.png,Frontal\r\n"
    )
    return tmp_path


def test_schema(root, caplog):
    dataset = read_openi(root)
    assert caplog.messages == ["openi: 1 of 4 reports have no image: left out."]
    assert dataset["study_id"][:] == dataset["patient_id"][:] == ["CXR1", "CXR1", "CXR2", "CXR10"]
    assert dataset["image_id"][1] == "CXR1_1_IM-0001-4001" and set(dataset["split"]) == {"train"}
    assert dataset["image"][1]["path"] == str(root / "NLMCXR_png" / "CXR1_1_IM-0001-4001.png")
    assert dataset["view"][:] == ["LATERAL", "PA", "OTHER", "PA"]
    assert dataset["findings"][:] == ["Heart < normal. Clear & dry."] * 4
    assert dataset["impression"][:] == ["No XXXX."] * 3 + [""]
    assert dataset["report"][0] == "COMPARISON: None.\nFINDINGS: Heart < normal. Clear & dry.\nIMPRESSION: No XXXX."
    assert finding_columns(dataset) == list(OPENI_FINDINGS)
    assert dataset["No Finding"][:2] == [1, 1] and math.isnan(dataset["No Finding"][2])  # not indexed
    assert dataset["Cardiomegaly"][3] == dataset["Lung Opacity"][3] == 1 and dataset["Edema"][3] == 0


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("NLMCXR_png", "CXR1_1_IM-0001-3001.png"),
        (".", "CXR1_1_IM-0001-3001.jpg"),
        ("images/images_normalized", "1_IM-0001-3001.dcm.png"),
        ("NLMCXR_dcm/1", "1_IM-0001-3001.dcm"),
    ],
)
def test_names_of_images(root, folder, name, caplog):
    shutil.rmtree(root / "NLMCXR_png")
    (root / "indiana_projections.csv").unlink()
    (root / folder).mkdir(parents=True, exist_ok=True)
    (root / folder / name).touch()
    dataset = read_openi(root)
    assert dataset["image_id"][:] == ["CXR1_1_IM-0001-3001"] and dataset["view"][:] == ["PA"]
    assert dataset["image"][0]["path"] == str((root / folder / name).resolve())
    assert caplog.messages[1:] == [
        "openi: without indiana_projections.csv, views are guessed from the names of the images: 8 of 100 images that "
        "count as frontal are not, and 10 of 100 frontal ones are missed. Put that table into the folder to get the "
        "true views.",
        "openi, split train: 3 of 4 images are missing, the first is CXR1_1_IM-0001-4001.png: left out.",
    ]


def test_image_key():
    assert image_key("CXR1_1_IM-0001-3001.png") == image_key("1_IM-0001-3001.dcm.png") == ("1", "IM-0001-3001")
    assert image_key("CXR2384_IM-0942-1002001.jpg") == ("2384", "IM-0942-1002001")
    assert image_key("CXR11_1_IM-0001-3001.png") is image_key("README.txt") is None


def test_repeated_report(root, caplog):
    shutil.copy(root / "ecgen-radiology" / "1.xml", root / "ecgen-radiology" / "4.xml")
    assert len(read_openi(root)) == 4
    assert "openi: 2 of 6 rows repeat a 'image_id': dropped." in caplog.messages


def write_tar(path, members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for member, data in members:
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def test_archive_as_shipped_equals_the_folder(root):
    expected = read_openi(root).to_pandas()
    names = ["10.xml", "1.xml", "2.xml", "3.xml"]  # any order
    reports = root / "ecgen-radiology"
    members = [(tarfile.TarInfo(f"ecgen-radiology/{name}"), (reports / name).read_bytes()) for name in names]
    write_tar(root / "NLMCXR_reports.tgz", members)
    shutil.rmtree(reports)
    assert read_openi(root).to_pandas().equals(expected)


def make_link() -> tarfile.TarInfo:
    member = tarfile.TarInfo("ecgen-radiology/5.xml")
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/hostname"
    return member


def test_dangerous_archives(root, monkeypatch):
    path, report = root / "NLMCXR_reports.tgz", make_report(1, ["CXR1_1_IM-0001-3001"])
    leaves = "NLMCXR_reports.tgz: a member is a link or leaves the archive; get it from https://openi.nlm.nih.gov/faq."
    for member in (make_link(), tarfile.TarInfo("/ecgen-radiology/5.xml"), tarfile.TarInfo("x/../../5.xml")):
        write_tar(path, [(tarfile.TarInfo("ecgen-radiology/1.xml"), report), (member, b"")])
        with pytest.raises(ValueError) as error:
            read_openi(root)
        assert str(error.value) == leaves
    write_tar(path, [(tarfile.TarInfo("ecgen-radiology/1.xml"), b" " * (openi_module.MAX_XML_BYTES + 1))])
    with pytest.raises(ValueError) as error:
        read_openi(root)
    assert (
        str(error.value)
        == f"NLMCXR_reports.tgz: a member is larger than 1,048,576 bytes; get it from {openi_module.SOURCE}."
    )
    monkeypatch.setattr(openi_module, "MAX_TAR_BYTES", 2**20)
    with pytest.raises(ValueError) as error:
        read_openi(root)
    assert str(error.value) == "NLMCXR_reports.tgz: more than 1 MiB unpacked; it is not the archive as shipped."
    monkeypatch.undo()
    for data in (path.read_bytes()[:-9], b"<html>not found</html>", b"", gzip.compress(b"not a tar" * 200)):
        path.write_bytes(data)
        with pytest.raises(ValueError) as error:
            read_openi(root)
        assert str(error.value) == (
            "NLMCXR_reports.tgz: the file is not a readable archive of reports; get it from "
            "https://openi.nlm.nih.gov/faq."
        )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]><eCitation><uId id="&x;"/></eCitation>',
            "1.xml: the XML has a document type declaration, unlike the reports of the archive.",
        ),
        (
            b'<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;&x;">]><eCitation>&y;</eCitation>',
            "1.xml: the XML has a document type declaration, unlike the reports of the archive.",
        ),
        (
            b"<eCitation>&x;</eCitation>",
            "1.xml: the report is not well-formed XML; get it from https://openi.nlm.nih.gov/faq.",
        ),
        (b"<eCitation>", "1.xml: the report is not well-formed XML; get it from https://openi.nlm.nih.gov/faq."),
        (b"", "1.xml: the report is not well-formed XML; get it from https://openi.nlm.nih.gov/faq."),
        (b"<eCitation/>", "1.xml: the XML is not a report of the archive: it has no uId."),
    ],
)
def test_dangerous_and_broken_reports(data, message):
    with pytest.raises(ValueError) as error:
        parse_report(data, "1.xml")
    assert str(error.value) == message


def test_wrong_folders_and_missing_files(root, tmp_path_factory):
    for folder in (root / "ecgen-radiology", root / "NLMCXR_png"):
        with pytest.raises(ValueError) as error:
            read_openi(folder)
        assert str(error.value) == f"{folder}: this is not the folder of openi, but {root} is; name that one."
    empty = tmp_path_factory.mktemp("lonely") / "empty"
    empty.mkdir()
    with pytest.raises(ValueError) as error:
        read_openi(empty)
    assert str(error.value) == (
        f"{empty}: NLMCXR_reports.tgz of openi is not in this folder; get it from https://openi.nlm.nih.gov/faq."
    )
    (root / "indiana_projections.csv").write_text("uid,projection\n")
    with pytest.raises(ValueError) as error:
        read_openi(root)
    assert str(error.value) == (
        "indiana_projections.csv: column 'filename' is missing; is this the file of the archive, unchanged?"
    )
    shutil.rmtree(root / "NLMCXR_png")
    (root / "indiana_projections.csv").unlink()
    with pytest.raises(ValueError) as error:
        read_openi(root)
    assert str(error.value) == (
        "openi: 4 of 4 images are missing, the first is CXR1_1_IM-0001-3001.png; check the image folder."
    )
    with pytest.raises(ValueError) as error:
        read_openi(root, "test")
    assert str(error.value) == no_split("openi", "test", "train")


def test_the_real_reports_give_the_findings_and_texts_of_the_indiana_set(shared_data, tmp_path):
    """All 3,955 reports as shipped, against the 3,009 images whose sections and findings were derived before."""
    shutil.copy(shared_data / "openi" / "NLMCXR_reports.tgz", tmp_path)
    (tmp_path / "images").mkdir()
    tables = [pd.read_csv(shared_data / "iu_cxr" / split / "metadata.csv") for split in ("train", "validation")]
    table = pd.concat(tables).set_index("image_id")
    for name in table["file_name"]:
        (tmp_path / "images" / name).touch()
    lines = [f"{name.split('_')[0][3:]},{name.split('_', 1)[1]}.dcm.png,Frontal" for name in table.index]
    lines = [line if line.split(",")[1].startswith("1_") else line.replace(",", ",{}_", 1) for line in lines]
    lines = [line.format(line.split(",")[0]) for line in lines]
    (tmp_path / "indiana_projections.csv").write_text("\n".join(["uid,filename,projection", *lines]) + "\n")
    frame = read_openi(tmp_path).to_pandas().set_index("image_id").loc[table.index]
    assert len(frame) == 3009 and set(frame["view"]) == {"PA"}
    assert frame["study_id"].equals(table["study_id"])
    for finding in OPENI_FINDINGS:
        np.testing.assert_array_equal(frame[finding], table[finding].astype("float32"), err_msg=finding)
    for section in ("findings", "impression"):
        expected = table[section].fillna("").map(repair_markup).str.split().str.join(" ")
        assert (frame[section].str.split().str.join(" ") == expected).all()
    counts = [
        int(np.nansum(frame[name])) for name in ("No Finding", "Cardiomegaly", "Pneumothorax", "Support Devices")
    ]
    assert counts == [
        int(table[name].sum()) for name in ("No Finding", "Cardiomegaly", "Pneumothorax", "Support Devices")
    ]


@pytest.mark.parametrize("encoding", ["foo-8", "utf-7", "utf-16"])
def test_encodings_that_nothing_reads(encoding):
    with pytest.raises(ValueError) as error:
        parse_report(make_report(1).replace(b"utf-8", encoding.encode()), "1.xml")
    assert str(error.value).startswith("1.xml: the report is not well-formed XML; get it from ")


def test_reports_that_are_folders_or_links(root, tmp_path_factory):
    (root / "ecgen-radiology" / "4.xml").mkdir()
    assert len(read_openi(root)) == 4
    outside = tmp_path_factory.mktemp("outside") / "5.xml"
    outside.write_bytes(make_report(5, ["CXR5_IM-0001-1001"]))
    (root / "ecgen-radiology" / "5.xml").symlink_to(outside)
    with pytest.raises(ValueError, match="^5.xml: the path leaves the image folder; name the folder that"):
        read_openi(root)


@pytest.mark.parametrize(
    ("ends", "frontal"),
    [
        (["2001"], [True]),  # the only image
        (["1001", "2001"], [True, False]),
        (["2001", "4004"], [False, True]),
        (["1001", "1002"], [True, False]),
        (["7", "8"], [True, False]),  # nothing is known: the first
        (["1001", "2001", "4004"], [True, False, True]),
        (["2001", "1002", "3003"], [True, False, False]),
    ],
)
def test_views_are_guessed_from_names(ends, frontal):
    views = guess_views([f"CXR1_IM-0001-{end}" for end in ends])
    assert views == ["FRONTAL" if is_frontal else "LATERAL" for is_frontal in frontal]


def test_the_error_of_guessed_views(shared_data):
    """Against the images that are known to be frontal; the others of their studies are taken as lateral."""
    tables = [pd.read_csv(shared_data / "iu_cxr" / split / "metadata.csv") for split in ("train", "validation")]
    table = pd.concat(tables)
    frontal, studies = set(table["image_id"]), set(table["study_id"])
    counts = {(is_frontal, guess): 0 for is_frontal in (True, False) for guess in ("FRONTAL", "LATERAL")}
    for name, data in openi_module.read_xml_files(shared_data / "openi" / "NLMCXR_reports.tgz"):
        report = parse_report(data, name)
        if report["study_id"] in studies:
            for image, guess in zip(report["images"], guess_views(report["images"]), strict=True):
                counts[image in frontal, guess] += 1
    assert counts == {
        (True, "FRONTAL"): 2696,
        (True, "LATERAL"): 313,
        (False, "FRONTAL"): 238,
        (False, "LATERAL"): 2515,
    }


@pytest.mark.parametrize("xml", ["<a>" * 300_000, "<r>" + "<a/>" * 20_000 + "</r>"])
def test_elements_are_bounded(xml):
    with pytest.raises(ValueError) as error:
        parse_report(xml.encode(), "1.xml")
    assert str(error.value) == (
        "1.xml: the XML has more than 10,000 elements or 50 levels, unlike the reports of the archive."
    )
