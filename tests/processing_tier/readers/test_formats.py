import gzip
import json
import subprocess
import sys
import unicodedata

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from processing_tier.readers import formats, list_splits, read_records
from processing_tier.readers.formats import read_frame
from processing_tier.records.schema import finding_columns
from processing_tier.records.table_options import TableOptions

ROWS = [
    {"image": "images/a.png", "patient_id": "007", "impression": "Röntgen: kein Erguß.", "Edema": "0"},
    {"image": "images/b.png", "patient_id": "10", "impression": "Ödem; links, klein.", "Edema": "1"},
    {"image": "images/c.png", "patient_id": "11", "impression": 'Zeile 1\nZeile 2 "zitiert"', "Edema": ""},
]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for name in "abc":
        Image.new("L", (4, 4)).save(tmp_path / "images" / f"{name}.png")
    return tmp_path


def check(path):
    dataset = read_records(path, "train")
    assert dataset["patient_id"][:] == ["007", "10", "11"]
    assert dataset["impression"][:] == [row["impression"] for row in ROWS]
    assert finding_columns(dataset) == ["Edema"]
    np.testing.assert_array_equal(dataset["Edema"][:], [0, 1, np.nan])
    assert list_splits(path) == ["train"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimiters_and_encodings(folder, delimiter, encoding, caplog):
    text = pd.DataFrame(ROWS).to_csv(index=False, sep=delimiter)
    (folder / "t.csv").write_bytes(text.encode(encoding))
    check(folder / "t.csv")
    told = [f"{folder / 't.csv'}: the file is not UTF-8; read as Windows-1252."] if encoding == "cp1252" else []
    assert list(dict.fromkeys(caplog.messages)) == told


@pytest.mark.parametrize(
    "suffix", ["csv", "tsv", "csv.gz", "tsv.gz", "csv.bz2", "csv.xz", "jsonl", "jsonl.gz", "json", "xlsx"]
)
def test_forms(folder, suffix):
    path, frame = folder / f"t.{suffix}", pd.DataFrame(ROWS)
    if suffix == "xlsx":
        frame.replace("", None).to_excel(path, index=False)
    elif "json" in suffix:
        frame.to_json(path, orient="records", lines="jsonl" in suffix, force_ascii=False)
    else:
        frame.to_csv(path, index=False, sep="\t" if "tsv" in suffix else ",")
    check(path)


def test_a_long_header(folder, monkeypatch):
    """Longer than the part of the file that tells the delimiter: the names are compared whole, and within a bound."""
    names = ["image", "patient_id", "Edema", *("c" * length for length in range(1, 801))]
    (folder / "t.csv").write_text(f"{','.join(names)}\nimages/a.png,1,0{',text' * 800}\n")
    assert (folder / "t.csv").stat().st_size > formats.SNIFFED_BYTES
    assert finding_columns(read_records(folder / "t.csv", "train")) == ["Edema"]
    monkeypatch.setattr(formats, "MAX_HEADER_BYTES", 2**18)
    with pytest.raises(ValueError) as error:
        read_records(folder / "t.csv", "train")
    assert str(error.value) == f"{folder / 't.csv'}: the header is longer than 262,144 bytes; is it the right file?"


def test_sheets(folder):
    path = folder / "t.xlsx"
    with pd.ExcelWriter(path) as file:
        pd.DataFrame({"note": ["x"]}).to_excel(file, sheet_name="About", index=False)
        frame = pd.DataFrame(ROWS).replace("", None).assign(Edema=[0, 1, None])
        frame.to_excel(file, sheet_name="Data", index=False)
    assert read_records(path, "train", TableOptions(sheet="Data"))["Edema"][:2] == [0, 1]
    for sheet, message in (
        (None, "which sheet? It has About, Data; name one with --sheet."),
        ("X", "the sheet 'X' does not exist; it has About, Data."),
    ):
        with pytest.raises(ValueError) as error:
            read_records(path, "train", TableOptions(sheet=sheet))
        assert str(error.value) == f"{path}: {message}"
    (folder / "t.csv").write_text("image,patient_id\nimages/a.png,1\n")
    with pytest.raises(ValueError, match="sheet='Data' is for Excel files only; leave it out."):
        read_records(folder / "t.csv", "train", TableOptions(sheet="Data"))
    (folder / "t.xls").write_bytes(b"x")
    with pytest.raises(ValueError, match="the old Excel format .xls is not supported; save the file as .xlsx"):
        read_records(folder / "t.xls", "train")


@pytest.mark.slow
def test_excel_without_its_reader(folder):
    """In a process that cannot import it."""
    pd.DataFrame(ROWS).to_excel(folder / "t.xlsx", index=False)
    code = (
        "import sys; sys.modules['openpyxl'] = None\n"
        "from pathlib import Path\nfrom processing_tier.readers.formats import read_frame\n"
        f"try: read_frame(Path({str(folder / 't.xlsx')!r}))\nexcept ValueError as error: print(error)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == (
        f"{folder / 't.xlsx'}: Excel files need openpyxl; run pip install openpyxl, or save the file as .csv."
    )


def test_windows_paths_and_unicode_forms(folder):
    (folder / "images" / "p1").mkdir()
    for form in ("NFC", "NFD"):
        Image.new("L", (4, 4)).save(folder / "images" / "p1" / unicodedata.normalize(form, f"é{form}.png"))
    names = [unicodedata.normalize("NFD", "éNFC.png"), unicodedata.normalize("NFC", "éNFD.png")]
    frame = pd.DataFrame({"image": [rf"images\p1\{name}" for name in names], "patient_id": [1, 2]})
    frame.to_csv(folder / "t.csv", index=False)
    dataset = read_records(folder / "t.csv", "train")
    assert [image["path"] for image in dataset["image"]] == [
        str((folder / "images" / "p1" / unicodedata.normalize(form, f"é{form}.png")).resolve())
        for form in ("NFC", "NFD")
    ]
    assert dataset["image_id"][:] == ["éNFC", "éNFD"]


def test_a_quotation_mark_that_swallows_rows(folder):
    (folder / "t.csv").write_text(
        "image,patient_id,impression\n"
        'images/a.png,1,"The heart is big.\nimages/b.png,2,Normal.\nimages/c.png,3,"Small.\n'
    )
    with pytest.raises(ValueError) as error:
        read_records(folder / "t.csv", "train")
    assert str(error.value) == (
        f"{folder / 't.csv'}: row 1 has 2 other rows in its column 'impression': a quotation mark there is not "
        "closed. Close it, or export the table again."
    )
    # Reports with lines, lists and commas are right
    report = '"FINDINGS:\n1. Clear, dry, wide.\n2. Heart, aorta, bones: normal.\nIMPRESSION:\nNormal, stable, fine."'
    (folder / "t.csv").write_text(f"image,patient_id,report\nimages/a.png,1,{report}\nimages/b.png,2,{report}\n")
    assert read_records(folder / "t.csv", "train")["impression"][:] == ["Normal, stable, fine."] * 2


NUL = "line 2 has a NUL character; remove it or export the table again."


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"image,patient_id,a\0b\nx,1,2\n", r"the column name 'a\x00b' has a control character; rename the column."),
        (b"image,patient_id,Edema,Edema\nx,1,2,1\n", "two columns are called 'Edema'; rename one of them."),
        (
            "image,patient_id,n\nä,1,ö\nb,2,ü\n".encode() + b"c,3,\xff\n",
            "line 4 is not UTF-8, which the rest of the file is; export it again as UTF-8.",
        ),
        (b"image,patient_id\n" + b"x" * 100_000 + b"\0\n", NUL),
        ("image,patient_id\nx,1\0\n".encode("utf-16"), NUL),
    ],
)  # fmt: skip
def test_damaged_text(folder, data, message):
    (folder / "t.csv").write_bytes(data)
    with pytest.raises(ValueError) as error:
        read_records(folder / "t.csv", "train")
    assert str(error.value) == f"{folder / 't.csv'}: {message}"


@pytest.mark.parametrize("line", ["{", "[1]", "[" * 100_000, '{"image": 1} x'])
def test_damaged_json_lines(folder, line):
    (folder / "t.jsonl").write_text('{"image": "images/a.png", "patient_id": 1}\n' + line + "\n")
    with pytest.raises(ValueError) as error:
        read_records(folder / "t.jsonl", "train")
    assert str(error.value).startswith(f"{folder / 't.jsonl'}: ") and len(str(error.value)) < 300


def test_huge_numbers(folder):
    rows = [{"image": "images/a.png", "patient_id": 1, "Edema": 10**400}, {"image": "images/b.png", "patient_id": 2}]
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match="finding 'Edema' has 1 values other than 1"):
        read_records(folder / "t.jsonl", "train")
    boxes = '[{"label": "Edema", "bbox_xywh": [1, 2, 3, 1' + "0" * 400 + "]}]"
    pd.DataFrame({"image": ["images/a.png"], "patient_id": 1, "boxes": boxes}).to_csv(folder / "t.csv", index=False)
    with pytest.raises(ValueError, match="a value of the boxes column is not a JSON list of label and bbox_xywh"):
        read_records(folder / "t.csv", "train")
    for data in (f"chestxray14:{folder},image_size=1{'0' * 400}", f"phantom:image_size=1{'0' * 400}"):
        with pytest.raises(ValueError, match="is not a whole number of at most 9 digits|is not known"):
            read_records(data, "train")


def test_index_columns_of_pandas_are_columns(folder):
    frame = pd.DataFrame({"image": ["images/a.png", "images/b.png"], "patient_id": ["1", "2"], "Edema": [1, 0]})
    frame.set_index("patient_id").to_parquet(folder / "t.parquet")
    assert read_records(folder / "t.parquet", "train")["patient_id"][:] == ["1", "2"]
    frame[::-1].to_parquet(folder / "t.parquet")
    assert read_frame(folder / "t.parquet").columns.tolist() == ["image", "patient_id", "Edema"]


def test_classes_are_named(folder):
    features = {"image": datasets.Value("string"), "patient_id": datasets.Value("int64")}
    features |= {
        "impression": datasets.ClassLabel(names=["Normal.", "Effusion."]),
        "Edema": datasets.ClassLabel(names=["no", "yes"]),
    }
    data = {"image": ["images/a.png", "images/b.png"], "patient_id": [1, 2], "impression": [1, 0], "Edema": [1, 0]}
    datasets.Dataset.from_dict(data, features=datasets.Features(features)).to_parquet(folder / "t.parquet")
    dataset = read_records(folder / "t.parquet", "train", TableOptions(label_values={"yes": 1.0, "no": 0.0}))
    assert dataset["impression"][:] == ["Effusion.", "Normal."] and dataset["Edema"][:] == [1, 0]


LIMIT = 3 * 2**30  # bytes of address space; imports alone take 1.5


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["parquet", "gz", "xlsx"])
def test_a_small_file_does_not_fill_the_memory(folder, kind):
    path = folder / f"t.{'csv.gz' if kind == 'gz' else kind}"
    if kind == "parquet":
        values = pa.DictionaryArray.from_arrays(pa.array(np.zeros(6_000_000, np.int32)), pa.array(["x" * 150]))
        pq.write_table(pa.table({"image": values, "patient_id": values}), path)
    elif kind == "gz":
        with gzip.open(path, "wb", compresslevel=1) as file:
            for _ in range(2100):
                file.write(b"a" * 2**20)
    else:
        import zipfile

        with (
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file,
            file.open("xl/x.xml", "w", force_zip64=True) as member,
        ):
            for _ in range(2100):
                member.write(b"a" * 2**20)
    code = (
        f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({LIMIT}, {LIMIT}))\n"
        "from processing_tier.readers import read_records\n"
        f"try: read_records({str(path)!r}, 'train')\nexcept ValueError as error: print(error)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "is it the right file?" in result.stdout, result.stderr[-2000:]
