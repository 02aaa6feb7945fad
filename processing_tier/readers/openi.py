"""
Open-i, the Indiana University chest X-ray collection: 7,470 radiographs of 3,955 studies with reports and MeSH terms.

Where and terms: https://openi.nlm.nih.gov/faq (`NLMCXR_reports.tgz`, `NLMCXR_png.tgz`, `NLMCXR_dcm.tgz`), Creative
Commons BY-NC-ND 4.0; cite Demner-Fushman et al. 2016, doi:10.1093/jamia/ocv080.

The folder: the reports as shipped or extracted, and the extracted images, in one of these forms (the first one that
exists counts). Images need not be complete.

    NLMCXR_reports.tgz  or  ecgen-radiology/1.xml  or  NLMCXR_reports/ecgen-radiology/1.xml
    NLMCXR_png/CXR1_1_IM-0001-3001.png  or the files in the folder itself, as .png or .jpg
    images/images_normalized/1_IM-0001-3001.dcm.png  (the mirror at kaggle.com/raddar/chest-xrays-indiana-university)
    NLMCXR_dcm/1/1_IM-0001-3001.dcm
    indiana_projections.csv  (optional, of that mirror: frontal or lateral)

Derived fields:

- findings: from the major MeSH terms, by [`OPENI_FINDINGS`], without qualifiers of a term (`/lung/base/left`). 0 if a
  study was indexed without the term, blank if it was not indexed ("No Indexing").
- view: from `indiana_projections.csv` (frontal becomes PA, the usual projection), otherwise guessed from the names of
  a study's images, see [`guess_views`]. For the 2,912 studies (5,762 images) whose 3,009 frontal images are known, the
  guess is wrong for 9.6 of 100 images: it finds 90 of 100 frontal images, and 8 of 100 that it calls frontal are not.
  Captions ("PA and lateral") describe the examination, not the image: by the DICOM headers, one in seven images that
  they call PA is AP.
- text: the sections FINDINGS and IMPRESSION; `report` has all four, each after its heading. `XXXX` marks what
  de-identification removed.
- split: there is no official one, so everything is `train`.
- patient: the collection does not give patients, so each study is its own patient. Sex and age are missing.

Checked against the whole archive of reports. The layout of `NLMCXR_dcm` is known from its users' descriptions.
"""

import gzip
import io
import itertools
import logging
import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree.ElementTree import Element, ParseError, TreeBuilder
from xml.parsers import expat

import datasets
import pandas as pd

from processing_tier.records.from_table import make_records

from ..radiograph_tier import path_under
from .archive_tables import drop_repeated, find_first, find_in_archive, read_bounded, read_columns
from .splits import check_split

logger = logging.getLogger(__name__)

SPLITS = ("train",)
OPENI_FINDINGS = {
    "No Finding": ("normal",),
    "Atelectasis": ("pulmonary atelectasis",),
    "Cardiomegaly": ("cardiomegaly",),
    "Consolidation": ("consolidation",),
    "Edema": ("pulmonary edema",),
    "Pleural Effusion": ("pleural effusion",),
    "Pneumonia": ("pneumonia",),
    "Pneumothorax": ("pneumothorax", "hydropneumothorax"),
    "Fracture": ("fractures, bone",),
    "Lung Opacity": ("opacity", "infiltrate", "airspace disease", "consolidation"),
    "Nodule/Mass": ("nodule", "mass"),
    "Granuloma": ("calcified granuloma", "granuloma", "granulomatous disease"),
    "Emphysema": ("emphysema", "pulmonary emphysema", "bullous emphysema"),
    "Fibrosis": ("pulmonary fibrosis",),
    "Hernia": ("hernia, hiatal",),
    "Support Devices": (
        "catheters, indwelling",
        "implanted medical device",
        "medical device",
        "tube, inserted",
        "stents",
    ),
}
NOT_INDEXED = "no indexing"
SOURCE = "https://openi.nlm.nih.gov/faq"
REPORTS = ("NLMCXR_reports.tgz", "ecgen-radiology", "NLMCXR_reports/ecgen-radiology", "NLMCXR_reports")
IMAGE_FOLDERS = ("NLMCXR_png", ".", "images", "images/images_normalized", "images_normalized", "NLMCXR_dcm")
# CXR1_1_IM-0001-3001.png (the National Library of Medicine) and 1_IM-0001-3001.dcm.png (Kaggle) are one image
IMAGE_NAME = re.compile(r"(?:CXR)?(\d+)_(?:\1_)?(IM-[\d-]+?)(?:\.dcm)?(?:\.(?:png|jpe?g|dcm))?", re.IGNORECASE)
# Ends of the names of images, from the most likely frontal (0) to the least likely
IMAGE_END = re.compile(r"IM-\d+-([\d-]+)$")
UNKNOWN_RANK = 5
VIEW_RANKS = {"4004": 0, "1002001": 0, "8001": 0, "1001": 1, "12012": 2, "2002": 2}
VIEW_RANKS |= dict.fromkeys(("2001", "1002", "3003", "1003"), 9)
MAX_XML_BYTES = 2**20  # of one report; the largest has 9 thousand
MAX_XML_ELEMENTS, MAX_XML_DEPTH = 10_000, 50  # the largest report has 124, at most 7 levels
MAX_TAR_BYTES = 2**28  # of the archive, unpacked: 35 million as shipped


def read_openi(root: str | os.PathLike, split: str = "train") -> datasets.Dataset:
    """
    Read Open-i into the schema of [`records`] without opening images.

    Args:
        root (`str` or `os.PathLike`): the folder with the reports and the images.
        split (`str`, *optional*, defaults to `"train"`): the only one.

    Returns:
        `datasets.Dataset`: one record per existing image, by number of the study. `image_id` is the collection's
        (`CXR1_1_IM-0001-3001`), whatever the name of the file. Studies without images are left out.

    Raises:
        `ValueError`: see [`make_records`]; also reports that are missing or cannot be read, or that hold a document
        type declaration, links, or names that leave the archive.
    """
    check_split(split, SPLITS, "openi")
    source = find_in_archive(root, REPORTS, "openi", SOURCE)
    images, views = find_images(Path(root)), read_views(Path(root))
    rows, empty, studies = [], 0, 0
    for name, data in read_xml_files(source):
        study = parse_report(data, name)
        ids = study.pop("images")
        guessed = guess_views(ids)
        studies, empty = studies + 1, empty + (not ids)
        for image_id, guess in zip(ids, guessed, strict=True):
            key, path = image_key(image_id), f"{image_id}.png"
            view = views.get(key) if views else guess
            rows.append({**study, "image_id": image_id, "path": images.get(key, path), "view": view})
    if not rows:
        raise ValueError(f"{source.name}: no report has an image; get it from {SOURCE}.")
    if empty:
        logger.warning("openi: %d of %d reports have no image: left out.", empty, studies)
    if not views:
        logger.warning(
            "openi: without indiana_projections.csv, views are guessed from the names of the images: 8 of 100 images "
            "that count as frontal are not, and 10 of 100 frontal ones are missed. Put that table into the folder to "
            "get the true views."
        )
    frame = drop_repeated(pd.DataFrame(rows), "image_id", "openi")
    columns = {finding: finding for finding in OPENI_FINDINGS}
    return make_records(frame, {"image": "path", **columns}, root, split, "openi", skip_missing=True)


def image_key(name: str) -> tuple[str, str] | None:
    """Study number and image number, which all names of one image share; `None` for any other file."""
    match = IMAGE_NAME.fullmatch(name)
    return (match[1], match[2]) if match else None


def guess_views(names: Sequence[str]) -> list[str]:
    """
    `FRONTAL` or `LATERAL` for each image of a study, by the numbers at the ends of the names (`-1001`, `-2001`), which
    come from the hospitals' scanners. A single image is frontal. Of two images, the more likely one is. Of more, those
    with a number that is usually frontal are frontal, or else the first one.
    """
    ends = [IMAGE_END.search(name) for name in names]
    ranks = [VIEW_RANKS.get(end[1], UNKNOWN_RANK) if end else UNKNOWN_RANK for end in ends]
    if len(ranks) <= 2:
        frontal = [rank == min(ranks) for rank in ranks]
        frontal = frontal if sum(frontal) == 1 else [index == 0 for index in range(len(ranks))]
    else:
        frontal = [rank < UNKNOWN_RANK for rank in ranks]
        frontal = frontal if any(frontal) else [index == 0 for index in range(len(ranks))]
    return ["FRONTAL" if is_frontal else "LATERAL" for is_frontal in frontal]


def find_images(root: Path) -> dict[tuple[str, str], str]:
    """Path below `root` of each existing image."""
    images: dict[tuple[str, str], str] = {}
    for folder in filter(Path.is_dir, (root / name for name in IMAGE_FOLDERS)):
        below = sorted(child for child in folder.iterdir() if child.is_dir()) if folder.name == "NLMCXR_dcm" else ()
        for child in itertools.chain([folder], below):
            for name in sorted(os.listdir(child)):
                key = image_key(name)
                if key is not None and "." in name:
                    images.setdefault(key, (child / name).relative_to(root).as_posix())
    return images


def read_views(root: Path) -> dict[tuple[str, str], str]:
    """Frontal or lateral by Kaggle's table; empty without it."""
    path = find_first(root, ["indiana_projections.csv"])
    if path is None:
        return {}
    frame = read_columns(path, ("filename", "projection"))
    return {image_key(str(name)): view for name, view in zip(frame["filename"], frame["projection"], strict=True)}


def read_xml_files(source: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of the report files of a folder or of the archive as shipped, by number."""

    def number(name: str) -> tuple[int, str]:
        stem = PurePosixPath(name).stem
        return int(stem) if stem.isdecimal() else -1, name

    if source.is_dir():
        for path in sorted(filter(Path.is_file, source.glob("*.xml")), key=lambda path: number(path.name)):
            yield path.name, read_bounded(path_under(source, path.name), MAX_XML_BYTES)
        return
    damaged = f"{source.name}: the file is not a readable archive of reports; get it from {SOURCE}."
    try:
        with gzip.open(source) as file:
            content = file.read(MAX_TAR_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(damaged) from error
    if len(content) > MAX_TAR_BYTES:
        raise ValueError(
            f"{source.name}: more than {MAX_TAR_BYTES >> 20} MiB unpacked; it is not the archive as shipped."
        )
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            members = archive.getmembers()
            for member in members:
                path = PurePosixPath(member.name)
                if path.is_absolute() or ".." in path.parts or not (member.isfile() or member.isdir()):
                    raise ValueError(f"{source.name}: a member is a link or leaves the archive; get it from {SOURCE}.")
            reports = [member for member in members if member.isfile() and member.name.endswith(".xml")]
            for member in sorted(reports, key=lambda member: number(member.name)):
                if member.size > MAX_XML_BYTES:
                    raise ValueError(
                        f"{source.name}: a member is larger than {MAX_XML_BYTES:,} bytes; get it from {SOURCE}."
                    )
                yield PurePosixPath(member.name).name, archive.extractfile(member).read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(damaged) from error


class DocumentType(Exception):
    """Stops a parser where a document declares its type."""


class TooManyElements(Exception):
    """Stops a parser at more elements, or deeper nesting, than in any report."""


def parse_xml(data: bytes, name: str) -> Element:
    """
    The root element of a document. Document type declarations are refused, because they could define entities that
    expand or lead to other files.

    Raises:
        `ValueError`: the document has a declaration, is not well-formed, or has more elements than any report.
    """
    builder, parser = TreeBuilder(), expat.ParserCreate()
    depth = count = 0

    def refuse(*declaration: Any) -> None:
        raise DocumentType

    def start(tag: str, attributes: dict) -> None:
        nonlocal depth, count
        depth, count = depth + 1, count + 1
        if depth > MAX_XML_DEPTH or count > MAX_XML_ELEMENTS:
            raise TooManyElements
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = builder.data, refuse
    parser.buffer_text = True
    try:
        parser.Parse(data, True)
        return builder.close()
    except DocumentType:
        raise ValueError(
            f"{name}: the XML has a document type declaration, unlike the reports of the archive."
        ) from None
    except TooManyElements:
        raise ValueError(
            f"{name}: the XML has more than {MAX_XML_ELEMENTS:,} elements or {MAX_XML_DEPTH} levels, unlike the "
            "reports of the archive."
        ) from None
    except (expat.ExpatError, ParseError, AssertionError, LookupError, ValueError) as error:  # the last two: encodings
        raise ValueError(f"{name}: the report is not well-formed XML; get it from {SOURCE}.") from error


def parse_report(data: bytes, name: str) -> dict:
    """One report: `study_id`, `patient_id`, texts, findings, and `images`, the names of its images."""
    root = parse_xml(data, name)
    identifier = root.find("uId")
    study = "" if identifier is None else identifier.get("id", "")
    if not study:
        raise ValueError(f"{name}: the XML is not a report of the archive: it has no uId.")
    sections = {}
    for element in root.iter("AbstractText"):
        text = " ".join("".join(element.itertext()).split())
        if text:
            sections[element.get("Label", "").upper()] = text
    major = {(element.text or "").split("/")[0].strip().lower() for element in root.iterfind("MeSH/major")}
    indexed = bool(major) and NOT_INDEXED not in major
    return {
        "study_id": study,
        "patient_id": study,
        "findings": sections.get("FINDINGS", ""),
        "impression": sections.get("IMPRESSION", ""),
        "report": "\n".join(f"{label}: {text}" for label, text in sections.items()),
        "images": [image.get("id", "") for image in root.iterfind("parentImage")],
        **{
            finding: float(not major.isdisjoint(terms)) if indexed else float("nan")
            for finding, terms in OPENI_FINDINGS.items()
        },
    }
