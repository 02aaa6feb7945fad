"""Any file that holds a radiograph to one 8-bit grey image."""

import io
import logging
import os
import sys
import threading
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import IO, Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import numpy as np
from PIL import Image, ImageOps

MAX_FILE_BYTES = 256 * 2**20
MAX_PIXELS = 80_000_000  # four times the largest detectors; below PIL's own bomb warning
MAX_HEADER_READS = 200_000  # pydicom reads a DICOM header in steps: two or three for an element, which takes 300 bytes
MAX_VALUE_BYTES, MAX_SEQUENCE_BYTES = 2**16, 4 * 2**20  # of a DICOM element that is looked into
MAX_RLE_BYTES = 8 * 2**20  # of what is decoded unmeasured: run lengths make 64 bytes of one
WINDOW_PERCENTILES = (0.5, 99.5)
MAX_SCANS = 100  # of a JPEG, which need not be large to have any number of them; common ones have up to 12
OVERSAMPLING = (
    1.5  # how many times larger than asked for a picture decoded at reduced size is, see docs/radiographs.md
)
IN_MEMORY = "an image in memory"
FORMATS = ("PNG", "JPEG", "JPEG2000", "TIFF", "BMP", "WEBP", "PPM")  # never formats that call other programs
NOT_RADIOGRAPHS = (  # DICOM modalities; radiographs come as CR, DX, RG, RF, OT or without one
    "AU BI BMD CT DG DOC ECG ES GM HC IO IVUS KO LS MG MR NM OCT OP OPT PR PT PX RTDOSE RTIMAGE RTPLAN RTSTRUCT "
    "SEG SM SR US VL XA XC"
).split()
PHOTOMETRIC = {  # by samples per pixel
    1: ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"),
    3: ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"),
}
RADIOGRAPH_CLASSES = ("ComputedRadiography", "DigitalXRay", "SecondaryCapture", "XRayRadiofluoroscopic", "Hardcopy")

DAMAGED = "{name}: the image cannot be decoded: the file is damaged; replace the file or leave it out."
CUT_SHORT = "{name}: the file is cut short, its end is missing; copy or download it again."
UNKNOWN = (
    "{name}: the image cannot be decoded: it is not PNG, JPEG, JPEG 2000, TIFF, BMP, WebP, PPM or DICOM; convert it "
    "or leave it out."
)
OTHER_FILES = {  # how files begin that are mistaken for images
    b"version https://git-lfs": "is a Git LFS pointer; run git lfs pull",
    b"%PDF": "is a PDF document, not an image; export its image as PNG",
    b"PK\x03\x04": "is a ZIP archive, not an image; unpack it",
    b"\x1f\x8b": "is a gzip archive, not an image; unpack it",
    b"\x93NUMPY": "is a NumPy array, not an image file; load it and pass the array",
    b"\x89HDF": "is an HDF5 file, not an image; pass the array that it holds",
}
TEXT = bytes([*b"\t\n\f\r", *range(32, 127), *range(128, 256)])
DEFLATED, EXPLICIT = b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.1\0\0\0"  # transfer syntaxes, of one length
PYDICOM_LOCK = threading.Lock()


class Refusal(ValueError):
    """A reason of this file's own; pydicom raises errors of every kind, and some quote the patient's data."""


def read_radiograph(
    source: str | os.PathLike | bytes | IO[bytes] | Image.Image | np.ndarray | dict,
    root: str | os.PathLike | None = None,
    least_size: Mapping[str, int] | None = None,
) -> Image.Image:
    """
    Read a radiograph: DICOM, or PNG, JPEG, JPEG 2000, TIFF and the like in any mode and depth.

    Bones are white on a dark ground as in the file (DICOM MONOCHROME1 is inverted). More than 8 bits are reduced as
    [`to_uint8`] says; DICOM goes through its rescale or modality LUT and its VOI LUT or first window (DICOM PS3.3
    C.11), and through the percentile window where it has neither or where they are no numbers. What a file holds
    decides, not what it is called.

    Args:
        source: a path, the bytes of a file, an open binary file, a `pydicom.Dataset`, a PIL image, a (height,
            width[, channels]) array, or a dict with "bytes" and "path" (an undecoded image of `datasets`).
        root (`str` or `os.PathLike`, *optional*):
            Folder that paths are relative to and must not leave, symbolic links resolved.
        least_size (`Mapping[str, int]`, *optional*):
            `{"shortest_edge": pixels}` or `{"longest_edge": pixels}` that the picture will be resized to. A JPEG is
            then decoded at a half, a quarter or an eighth of its size, as long as that edge keeps 1.5 times as many
            pixels. Anything else, and by default everything, is decoded in full.

    Returns:
        `PIL.Image.Image`: mode "L", bones white, upright. Its `info` holds `"original_size"`, (width, height) of the
        picture in the file; `"reduction"`, 1, 2, 4 or 8; and, where a DICOM file states it, `"pixel_spacing"`, mm in
        the file from row to row and from column to column, at the detector where it is not given at the patient.
        Nothing else of the file's header is in it.

    Raises:
        `ValueError`: the image cannot be decoded, is no radiograph, is too large, or lies outside `root`. The message
        names the file without its folder, and nothing of its content.
    """
    if isinstance(source, dict):
        data, path = source.get("bytes"), source.get("path")
        if data is None and path is None:
            raise ValueError("an image record has neither bytes nor a path; give one of the two.")
        name = Path(path).name if path else IN_MEMORY
        return decode(data, name, least_size) if data is not None else read_radiograph(path, root, least_size)
    if isinstance(source, (bytes, bytearray)):
        return decode(bytes(source), IN_MEMORY, least_size)
    if isinstance(source, (str, os.PathLike)):
        path = path_under(root, source) if root is not None else Path(source)
        return decode(read_file(path), path.name, least_size)
    if "pydicom" in sys.modules and isinstance(source, sys.modules["pydicom"].Dataset):
        return decode_dicom(source, Path(str(getattr(source, "filename", None) or IN_MEMORY)).name)
    if hasattr(source, "read"):
        name = Path(str(getattr(source, "name", "an open file"))).name
        data = source.read(MAX_FILE_BYTES + 1)
        if not isinstance(data, bytes):
            raise ValueError(f"{name}: the file is open as text; open it in binary mode.")
        return decode(data, name, least_size)
    if isinstance(source, Image.Image):
        return convert(source, Path(getattr(source, "filename", "")).name or IN_MEMORY)
    array = np.asarray(source)
    if array.dtype.kind not in "buif":
        raise ValueError(
            f"an image cannot be read from a {type(source).__name__}; give a path, bytes, an open file, a PIL image "
            "or an array."
        )
    if array.ndim not in (2, 3) or array.ndim == 3 and array.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"an array of shape {array.shape} is not an image; give (height, width) or (height, width, 1 | 3 | 4)."
        )
    check_pixels(array.shape[1], array.shape[0], IN_MEMORY)
    return with_info(to_grey(array))


def path_under(root: str | os.PathLike, path: str | os.PathLike) -> Path:
    """
    `path`, relative to `root` or absolute, with every symbolic link resolved.

    Raises:
        `ValueError`: it does not lie under `root`.
    """
    root = os.path.realpath(root)
    resolved = Path(os.path.realpath(os.path.join(root, path)))
    if not resolved.is_relative_to(root):
        raise ValueError(
            f"{Path(path).name}: the path leaves the image folder; name the folder that holds the images."
        )
    return resolved


def read_file(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise ValueError(f"{path.name}: there is no such image file; check the path and the image folder.")
        with open(path, "rb") as file:
            check_bytes(os.fstat(file.fileno()).st_size, path.name)
            return file.read(MAX_FILE_BYTES + 1)  # it may be growing
    except OSError as error:
        raise ValueError(f"{path.name}: the file cannot be read ({error.strerror}); check its permissions.") from error


def fetch_radiograph(
    url: str, timeout: float | None = 30.0, least_size: Mapping[str, int] | None = None
) -> Image.Image:
    """
    Read a radiograph from a web server.

    Args:
        url (`str`): `http://` or `https://`; it is not read from data sets, whose paths never cause a request.
        timeout (`float`, *optional*, defaults to 30.0): Seconds that the server may be silent; `None` waits for ever.
        least_size (`Mapping[str, int]`, *optional*): See [`read_radiograph`].

    Raises:
        `ValueError`: the URL cannot be fetched, or what it gives cannot be decoded or is too large. The message names
        the last part of the URL's path.
    """
    name = "an image of a web server"
    try:
        parts = urlsplit(url)
        name = Path(parts.path).name or parts.netloc.rpartition("@")[2]  # without the password
        with urlopen(url, timeout=timeout) as response:
            data = response.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError, HTTPException) as error:
        reason = error if isinstance(error, OSError) else type(error).__name__  # others quote the URL, key and all
        raise ValueError(
            f"{name}: the URL cannot be fetched ({reason}); check it, or download the file and give its path."
        ) from None
    return decode(data, name, least_size)


def check_bytes(size: int, name: str) -> None:
    if size > MAX_FILE_BYTES:
        raise ValueError(f"{name}: the file is larger than {MAX_FILE_BYTES >> 20} MiB; export it as a smaller PNG.")


def check_pixels(width: int, height: int, name: str, samples: int = 1) -> None:
    limit = MAX_PIXELS // samples
    if width * height > limit:
        raise Refusal(f"{name}: {width}x{height} pixels are more than {limit:,}; export it at a smaller size.")


def check_scans(codestream: bytes, name: str) -> None:
    if codestream.count(b"\xff\xda") > MAX_SCANS:  # in pixels, ff is never followed by da
        raise Refusal(
            f"{name}: a JPEG of more than {MAX_SCANS} scans would take too long to decode; replace the file."
        )


def decode(data: bytes, name: str, least_size: Mapping[str, int] | None = None) -> Image.Image:
    """Decode the bytes of one file; `name` stands for it in errors."""
    check_bytes(len(data), name)
    if data[128:132] == b"DICM" or data[:2] in (b"\x02\0", b"\x08\0", b"\0\x08"):  # or its first tag, with no preamble
        return decode_dicom(data, name)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)  # reads the header alone
    except Image.DecompressionBombError:  # of PIL, above twice its own bound
        raise ValueError(f"{name}: more than {MAX_PIXELS:,} pixels; export it at a smaller size.") from None
    except Exception as error:
        raise ValueError(reason(data, name, error)) from error
    check_pixels(*image.size, name)
    size, reduction = image.size, reduce_decoding(image, least_size)
    try:
        if image.format == "PNG":
            Image.open(io.BytesIO(data), formats=FORMATS).verify()  # the checksums, which load() does not look at
        elif image.format in ("JPEG", "MPO"):
            check_scans(data, name)
        image.load()
    except Refusal:
        raise
    except Exception as error:  # what a decoder raises on a damaged file is not documented
        raise ValueError(reason(data, name, error)) from error
    return convert(image, name, size if reduction > 1 else None, reduction)


def convert(
    image: Image.Image, name: str, original_size: tuple[int, int] | None = None, reduction: int = 1
) -> Image.Image:
    """The grey picture of an opened file, which stands for one of `original_size`."""
    check_pixels(*image.size, name)
    try:
        image.load()
    except Exception as error:
        raise ValueError(DAMAGED.format(name=name)) from error
    try:
        grey = to_grey(image)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if original_size is None and is_reduced(image):  # one that was read before
        original_size, reduction = image.info["original_size"], image.info["reduction"]
    return with_info(grey, original_size, reduction, image.info.get("pixel_spacing"))


def with_info(
    grey: Image.Image, original_size: tuple[int, int] | None = None, reduction: int = 1, pixel_spacing=None
) -> Image.Image:
    """Nothing of a file's header but this stays with the picture: comments may hold the patient's name."""
    grey.info = {"original_size": original_size or grey.size, "reduction": reduction}
    if isinstance(pixel_spacing, tuple):  # a text of a PNG file may be called so
        grey.info["pixel_spacing"] = pixel_spacing
    return grey


def is_reduced(image: Image.Image) -> bool:
    """Whether the picture is all of a larger one, decoded at reduced size; what was cut out of it is none."""
    size, reduction = image.info.get("original_size"), image.info.get("reduction")
    if not isinstance(size, tuple) or not isinstance(reduction, int) or reduction == 1:
        return False
    return image.size == (-(-size[0] // reduction), -(-size[1] // reduction))


def original_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of the picture in the file that [`read_radiograph`] made this one of."""
    return image.info["original_size"] if is_reduced(image) else image.size


def resize(image: Image.Image, size: tuple[int, int], resample: int) -> Image.Image:
    """Resize (width, height) as if from the original: of a reduced picture, the last pixels may stand for a part."""
    width, height = original_size(image)
    reduction = image.info["reduction"] if is_reduced(image) else 1
    return image.resize(size, resample, box=(0, 0, width / reduction, height / reduction))


def reduce_decoding(image: Image.Image, least_size: Mapping[str, int] | None) -> int:
    """Have an opened JPEG decode straight to grey and at reduced size; by which factor."""
    reduction = 1
    if image.format not in ("JPEG", "MPO"):
        return reduction
    if least_size and orientation(image) == 1:
        ((edge, pixels),) = least_size.items()
        if edge not in ("shortest_edge", "longest_edge"):
            raise ValueError(f"least_size={dict(least_size)} has no shortest_edge or longest_edge; give one of them.")
        present = {"shortest_edge": min, "longest_edge": max}[edge](image.size)
        reduction = next((factor for factor in (8, 4, 2) if present >= factor * OVERSAMPLING * pixels), 1)
    image.draft("L", (max(image.width // reduction, 1), max(image.height // reduction, 1)))
    return reduction


def orientation(image: Image.Image) -> int:
    """EXIF's, of which 1 is upright."""
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # a damaged block of camera data says nothing of the pixels
        return 1


def reason(data: bytes, name: str, error: Exception) -> str:
    """Why a file that PIL does not decode is none."""
    head = data[:1024].removeprefix(b"\xef\xbb\xbf").lstrip()
    if not data:
        return f"{name}: the file is empty; copy or download it again."
    for start, what in OTHER_FILES.items():
        if head.startswith(start):
            return f"{name}: the file {what}."
    if any(tag in head.lower() for tag in (b"<!doctype html", b"<html", b"<head", b"<body")):
        return f"{name}: the file is a web page, not an image; download it again, logged in."
    if head[:3] == b"\xff\xd8\xff" or b"\xff\x4f\xff\x51" in head:  # JPEG, JPEG 2000
        short = not has_end(data)
    elif head[:4] == b"\x89PNG":
        short = b"IEND" not in data[-1024:]
    elif head[:4] == b"RIFF":
        short = len(data) < 8 + int.from_bytes(data[4:8], "little")
    elif head[:2] == b"BM":
        short = len(data) < int.from_bytes(data[2:6], "little")
    elif head[:4] in (b"II*\0", b"MM\0*"):  # TIFF, whose directory usually comes last
        order = "little" if head[:2] == b"II" else "big"
        short = "truncated" in str(error) or len(data) < int.from_bytes(data[4:8], order) + 2
    elif not head.translate(None, TEXT) and not (head[:1] == b"P" and head[1:2].isdigit()):
        return f"{name}: the file is text, not an image; name the image file."
    elif isinstance(error, Image.UnidentifiedImageError):
        return UNKNOWN.format(name=name)
    else:
        short = "truncated" in str(error)
    return (CUT_SHORT if short else DAMAGED).format(name=name)


def decode_dicom(source: bytes | Any, name: str) -> Image.Image:
    """The grey picture of a single-frame DICOM file, or of a `pydicom.Dataset`, which is left as it is."""
    try:  # an import in a `try` is no requirement of a model repository that ships this file
        import pydicom
        import pydicom.pixels
    except ImportError:
        raise ValueError(
            f"{name}: pydicom, which reads DICOM, is not installed: pip install pydicom, or export the image as PNG."
        ) from None
    problem = "the DICOM header cannot be read or describes no image; replace the file or leave it out."
    try:
        with quiet():
            dataset = source
            if isinstance(source, bytes):
                dataset = pydicom.dcmread(CountedReads(inflate(source, name)), force=True)
            header = read_header(pydicom, dataset, name)
        problem = "the DICOM pixels cannot be decoded: the file is damaged; replace it, or export the image as PNG."
        array = stored_pixels(pydicom, dataset, header, name)
        problem = "a lookup table of the DICOM file is damaged; export the image as PNG or leave it out."
        with quiet():
            if header.photometric == "PALETTE COLOR":
                array, table = pydicom.pixels.apply_color_lut(array, dataset), None
                header.bits = value(dataset, "RedPaletteColorLookupTableDescriptor")[2]
            else:
                table = grey_table(array, dataset, header) if header.samples == 1 else None
    except Refusal:
        raise
    except Exception:
        raise ValueError(f"{name}: {problem}") from None
    if table is None:
        grey = to_grey((array >> max(header.bits - 8, 0)).astype(np.uint8))
    else:
        grey = Image.fromarray(np.take(table, array.view(f"u{array.itemsize}")))
    return with_info(grey, pixel_spacing=header.pixel_spacing)


@contextmanager
def quiet() -> Iterator[None]:
    """
    While a header is read: pydicom's warnings and log lines quote its values. Both belong to the process, so one
    thread at a time.
    """
    log = logging.getLogger("pydicom")
    with PYDICOM_LOCK, warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        propagate, log.propagate = log.propagate, False
        try:
            yield
        finally:
            log.propagate = propagate


class CountedReads(io.BytesIO):
    """The bytes of a file whose header may have so many elements and no more."""

    reads = 0

    def read(self, size: int | None = -1) -> bytes:
        self.reads += 1
        if self.reads > MAX_HEADER_READS:
            raise ValueError("too many elements")
        return super().read(size)


def inflate(data: bytes, name: str) -> bytes:
    """A DICOM file with what is deflated in it inflated, which pydicom would do without a bound."""
    at = data.find(DEFLATED, 132, 1024)
    if at < 0:
        return data
    start = 144 + int.from_bytes(data[140:144], "little")  # behind group 2, which begins with its length
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    body = inflater.decompress(data[start:], MAX_FILE_BYTES)
    if inflater.unconsumed_tail:
        raise Refusal(
            f"{name}: the file inflates to more than {MAX_FILE_BYTES >> 20} MiB; export it as a smaller PNG."
        )
    if not inflater.eof:
        raise Refusal(CUT_SHORT.format(name=name))
    return b"".join((data[:at], EXPLICIT, data[at + len(EXPLICIT) : start], body))


def value(dataset: Any, keyword: str, default: Any = None) -> Any:
    """An element's value; one too large to be what it should be is refused before pydicom makes objects of it."""
    element = dataset.get_item(keyword)
    limit = MAX_SEQUENCE_BYTES if keyword.endswith("Sequence") else MAX_VALUE_BYTES
    if element is not None and isinstance(element.value, bytes) and len(element.value) > limit:
        raise ValueError("too large")
    found = dataset.get(keyword)
    return default if found is None or isinstance(found, str) and not found else found


def numbers(dataset: Any, keyword: str) -> list[float]:
    """An element's values; none where they are no numbers."""
    try:
        return np.array(value(dataset, keyword, []), dtype=float, ndmin=1).tolist()
    except (ValueError, TypeError, OverflowError):
        return []


def read_header(pydicom: ModuleType, dataset: Any, name: str) -> SimpleNamespace:
    """
    What a DICOM header says of the pixels.

    Raises:
        `Refusal`: they are no radiograph, too many, or not there.
    """
    meta = getattr(dataset, "file_meta", {})
    sop_class = pydicom.uid.UID(str(value(dataset, "SOPClassUID") or meta.get("MediaStorageSOPClassUID") or ""))
    radiograph = sop_class.keyword.startswith(RADIOGRAPH_CLASSES)
    if sop_class.keyword and not radiograph:  # pydicom has no keyword for those of a vendor
        what = "is not a radiograph" if "PixelData" in dataset else "holds no image"
        raise Refusal(f"{name}: a DICOM file of the class {sop_class.name} {what}; leave it out.")
    if "PixelData" not in dataset:
        if radiograph or "Rows" in dataset:
            raise Refusal(f"{name}: the DICOM file ends before its pixels; copy or download it again.")
        raise ValueError("no image")
    header = SimpleNamespace(
        rows=int(dataset.Rows),
        columns=int(dataset.Columns),
        samples=int(value(dataset, "SamplesPerPixel", 1)),
        photometric=str(value(dataset, "PhotometricInterpretation", "")),
        allocated=int(dataset.BitsAllocated),
    )
    frames, modality = int(value(dataset, "NumberOfFrames", 1)), value(dataset, "Modality")
    if frames > 1:
        raise Refusal(f"{name}: a DICOM file of {frames} frames is not a radiograph; export the frame you need.")
    if modality in NOT_RADIOGRAPHS:
        raise Refusal(f"{name}: a DICOM image of the modality {modality} is not a radiograph; leave it out.")
    if header.allocated not in (8, 16):
        raise Refusal(f"{name}: a DICOM image of {header.allocated} bits is not a radiograph; export it as PNG.")
    check_pixels(header.columns, header.rows, name, 3 if header.photometric == "PALETTE COLOR" else header.samples)
    if header.photometric not in PHOTOMETRIC.get(header.samples, ()):
        raise Refusal(f"{name}: the DICOM image is neither grey nor of known colours; export it as PNG.")
    header.bits = int(value(dataset, "BitsStored", header.allocated))
    header.high_bit = int(value(dataset, "HighBit", header.bits - 1))
    header.signed = int(value(dataset, "PixelRepresentation", 0))
    header.transfer_syntax = meta.get("TransferSyntaxUID")
    if header.transfer_syntax is None:  # as in a file without a preamble
        big_endian, implicit = dataset.original_encoding[1] is False, dataset.original_encoding[0]
        native = (pydicom.uid.ExplicitVRLittleEndian, pydicom.uid.ImplicitVRLittleEndian)[bool(implicit)]
        header.transfer_syntax = pydicom.uid.ExplicitVRBigEndian if big_endian else native
    spacings = (numbers(dataset, keyword) for keyword in ("PixelSpacing", "ImagerPixelSpacing"))
    header.pixel_spacing = next(
        (tuple(pair) for pair in spacings if len(pair) == 2 and all(0 < mm < np.inf for mm in pair)), None
    )
    return header


def stored_pixels(pydicom: ModuleType, dataset: Any, header: SimpleNamespace, name: str) -> np.ndarray:
    """
    The stored values, (height, width) or (height, width, 3) integers of 8 or 16 bits, as pydicom decodes them once
    nothing in them can take more memory than the header says.
    """
    syntax = header.transfer_syntax
    try:
        decoder = pydicom.pixels.get_decoder(syntax)
    except NotImplementedError:
        known = syntax.name if syntax.is_transfer_syntax else "in a way of its own"
        raise Refusal(f"{name}: DICOM pixels stored as {known} cannot be read; export the image as PNG.") from None
    if not decoder.is_available:
        raise Refusal(
            f"{name}: nothing here decodes {syntax.name}; pip install pylibjpeg pylibjpeg-openjpeg pylibjpeg-libjpeg, "
            "or export the image as PNG."
        )
    bits, shift = header.bits, 0
    if syntax.is_encapsulated:
        check_frame(pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1), header, name)
    else:
        length = header.rows * header.columns * header.samples * header.allocated // 8
        if header.photometric == "YBR_FULL_422":
            length = length * 2 // 3
        if len(dataset.PixelData) < length:
            raise Refusal(
                f"{name}: the DICOM pixels are cut short, {len(dataset.PixelData):,} of {length:,} bytes; copy or "
                "download the file again."
            )
    if not syntax.is_encapsulated or syntax.keyword == "RLELossless":
        # pydicom takes the value from the lowest bits and clears those above, such as overlays
        shift = max(header.high_bit + 1 - bits, 0)
    options = {
        "number_of_frames": 1,
        "samples_per_pixel": header.samples,
        "bits_stored": bits + shift,
        "pixel_representation": header.signed,
    }
    array = decoder.as_array(dataset, **pydicom.pixels.utils.as_pixel_options(dataset, **options))[0]
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return array >> shift if shift else array


def check_frame(frame: bytes, header: SimpleNamespace, name: str) -> None:
    """
    Raises:
        `Refusal`: a compressed image that ends early, or that decodes to another size than the header says, for which
        decoders would take the memory.
    """
    wanted = header.columns, header.rows, header.samples
    if header.transfer_syntax.keyword == "RLELossless":
        size = header.rows * header.columns * header.samples * header.allocated // 8
        if len(frame) > MAX_RLE_BYTES and run_length_size(frame) > size + 128 * 15:
            raise Refusal(f"{name}: the DICOM pixels decode to more than {size:,} bytes; replace the file.")
        return
    found = codestream_size(frame)
    if found != wanted:
        raise Refusal(
            f"{name}: the compressed pixels are {found[0]}x{found[1]}x{found[2]} where the DICOM header says "
            f"{wanted[0]}x{wanted[1]}x{wanted[2]}; replace the file."
        )
    check_scans(frame, name)
    if not has_end(frame):
        raise Refusal(f"{name}: the DICOM pixels are cut short; copy or download the file again.")


def has_end(codestream: bytes) -> bool:
    """Whether a JPEG, JPEG-LS or JPEG 2000 image ends with the marker that says so, and perhaps some padding."""
    return b"\xff\xd9" in codestream[-64:]


def codestream_size(frame: bytes) -> tuple[int, int, int]:
    """Width, height and components that a JPEG, JPEG-LS or JPEG 2000 image says it has; an error if it is none."""
    at = 0
    if not frame.startswith((b"\xff\x4f", b"\xff\xd8")):
        at = frame.index(b"jp2c") + 4  # JPEG 2000 in the boxes of a file
    if frame.startswith(b"\xff\x4f\xff\x51", at):
        width, height, left, top = np.frombuffer(frame, ">u4", 4, at + 8).tolist()
        return width - left, height - top, int.from_bytes(frame[at + 40 : at + 42], "big")
    at += 2
    while frame[at] == 0xFF:
        marker = frame[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) or marker == 0xF7:  # start of frame
            height, width = np.frombuffer(frame, ">u2", 2, at + 5).tolist()
            return width, height, frame[at + 9]
        at += 1 if marker == 0xFF else 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    raise ValueError("no start of frame")


def run_length_size(frame: bytes) -> int:
    """Bytes that the segments of an RLE image decode to (DICOM PS3.5 G.3.2)."""
    count, *offsets = np.frombuffer(frame, "<u4", 16).tolist()
    offsets, size = [*offsets[:count], len(frame)], 0
    for at, end in zip(offsets[:-1], offsets[1:], strict=True):
        while at < end:
            head = frame[at]
            size += head + 1 if head < 128 else 257 - head if head > 128 else 0
            at += head + 2 if head < 128 else 2 if head > 128 else 1
    return size


def grey_table(array: np.ndarray, dataset: Any, header: SimpleNamespace) -> np.ndarray:
    """
    The grey level, 0..255, of each bit pattern that a pixel of `array` may be: modality LUT or rescale, then VOI LUT,
    window or percentiles, then MONOCHROME1, padding black. For 65,536 patterns rather than for each pixel.
    """
    patterns = np.arange(2 ** (8 * array.itemsize), dtype=f"u{array.itemsize}")
    stored = patterns.view(array.dtype).astype(np.int64)
    padding = np.zeros(len(stored), dtype=bool)
    ends = numbers(dataset, "PixelPaddingValue")[:1] + numbers(dataset, "PixelPaddingRangeLimit")[:1]
    if ends and "PixelPaddingValue" in dataset:
        ends = np.array(ends, dtype=np.int64).astype(patterns.dtype).view(array.dtype)  # US may stand for SS
        padding = (stored >= ends.min()) & (stored <= ends.max())

    if luts := value(dataset, "ModalityLUTSequence"):
        values, _ = look_up(stored, luts[0], header)
    else:
        slope, intercept = (numbers(dataset, f"Rescale{part}")[:1] for part in ("Slope", "Intercept"))
        values = stored.astype(np.float64)
        if slope and intercept and np.isfinite(slope + intercept).all() and slope[0]:
            values = values * slope[0] + intercept[0]

    if luts := value(dataset, "VOILUTSequence"):
        output, bits = look_up(np.rint(values).astype(np.int64), luts[0], header)
        levels = output / (2**bits - 1)
    else:
        levels = window(values, dataset)
    if levels is None:
        counts = count_patterns(array.view(patterns.dtype), len(patterns))
        levels = spread(values, *percentiles(values, np.where(padding, 0, counts)))
    grey = np.rint(levels.clip(0, 1) * 255).astype(np.uint8)
    if header.photometric == "MONOCHROME1":
        grey = 255 - grey
    grey[padding] = 0
    return grey


def look_up(values: np.ndarray, lut: Any, header: SimpleNamespace) -> tuple[np.ndarray, int]:
    """
    Integers through the lookup table of a DICOM item, and how many bits it gives (DICOM PS3.3 C.11.1.1, C.11.2.1.1).
    pydicom's own functions take an 8-bit table for one of 256 entries and wrap what lies far above a table.
    """
    entries, first, bits = (int(number) for number in value(lut, "LUTDescriptor"))
    entries, bits = entries & 0xFFFF or 2**16, bits & 0xFFFF  # where they are encoded as signed
    if not 8 <= bits <= 16:
        raise ValueError("bits")
    if first >= 2**15 and values.min() < 0:  # implicit VR does not tell the two
        first -= 2**16
    element = lut.get_item("LUTData")
    if isinstance(element.value, bytes):
        little_endian = header.transfer_syntax.is_little_endian
        output = np.frombuffer(element.value[: 2 * entries], "<u2" if little_endian else ">u2")
    else:
        output = np.array(element.value, dtype=np.int64, ndmin=1).astype(np.uint16)
    if len(output) < entries and bits == 8:  # two to a word
        output = output.astype("<u2").view(np.uint8)
    if len(output) < entries:
        raise ValueError("entries")
    return output[:entries].astype(np.int64)[(values - first).clip(0, entries - 1)], bits


def window(values: np.ndarray, dataset: Any) -> np.ndarray | None:
    """
    The first window of a DICOM file as 0..1 (DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3), or `None` where there is none, or
    none that is one. pydicom's own function gives modality units, which a negative slope turns round.
    """
    centers, widths = numbers(dataset, "WindowCenter"), numbers(dataset, "WindowWidth")
    if not centers or not widths or not np.isfinite([centers[0], widths[0]]).all():
        return None
    center, width, function = centers[0], widths[0], str(value(dataset, "VOILUTFunction", "LINEAR")).upper()
    if function == "LINEAR" and width == 1:
        return (values > center - 0.5).astype(np.float64)
    if function == "LINEAR" and width > 1:
        return spread(values, center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2)
    if function == "LINEAR_EXACT" and width > 0:
        return spread(values, center - width / 2, center + width / 2)
    if function == "SIGMOID" and width > 0:
        return 1 / (1 + np.exp(-4 * (values - center) / width))
    return None


def spread(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """`low`..`high` as 0..1, not clipped; all 0 where the two are one."""
    return (values - low) / (high - low) if high > low else np.zeros(len(values))


def count_patterns(array: np.ndarray, number: int) -> np.ndarray:
    """How many pixels have each unsigned value below `number`, in strips: numpy counts 64-bit copies."""
    return sum(np.bincount(strip.ravel(), minlength=number) for strip in np.array_split(array, 16))


def percentiles(values: np.ndarray, counts: np.ndarray) -> list[float]:
    """The `WINDOW_PERCENTILES` of values that occur so often, as `np.percentile` gives them; zeros where none does."""
    order = np.argsort(values, kind="stable")
    values, ends = values[order], counts[order].cumsum()
    if not ends[-1]:
        return [0.0, 0.0]
    places = np.array(WINDOW_PERCENTILES) / 100 * (ends[-1] - 1)
    below = values[np.searchsorted(ends, np.floor(places), side="right")]
    above = values[np.searchsorted(ends, np.ceil(places), side="right")]
    return (below + (above - below) * (places % 1)).tolist()


def window_to_uint8(array: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map `low`..`high` linearly to 0..255 and clip; all 0 where the window is empty (a constant image)."""
    if not high > low:
        return np.zeros(array.shape, dtype=np.uint8)
    scaled = (array.astype(np.float32) - low) * (255.0 / (high - low))
    return np.rint(scaled).clip(0, 255).astype(np.uint8)


def to_uint8(array: np.ndarray) -> np.ndarray:
    """
    Grey levels of any number type as 0..255.

    Fractions within 0..1 (times 255) and numbers within 0..255 keep their values. Everything else (12- and 16-bit
    files, floats of any other range) is windowed between the 0.5th and 99.5th percentile of the image itself: the
    number of bits in use is seldom recorded, and a burnt-in marker must not set the scale.

    Raises:
        `ValueError`: an empty array, or one with NaN or infinity.
    """
    if array.size == 0:
        raise ValueError(f"an image of shape {array.shape} has no pixels; give one with at least 1x1.")
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError("an image holds NaN or infinite pixels; replace them with numbers.")
    lowest, highest = array.min(), array.max()
    if array.dtype.kind == "f" and lowest >= 0 and highest <= 1:
        return window_to_uint8(array, 0, 1)
    if lowest >= 0 and highest <= 255:
        return np.rint(array).astype(np.uint8)
    if array.dtype != np.uint16:
        return window_to_uint8(array, *np.percentile(array, WINDOW_PERCENTILES))
    patterns = np.arange(2**16, dtype=np.uint16)  # twice as fast, in a quarter of the memory
    window = percentiles(patterns.astype(np.float64), count_patterns(array, len(patterns)))
    return np.take(window_to_uint8(patterns, *window), array)


def to_grey(image: Image.Image | np.ndarray) -> Image.Image:
    """
    A picture of any PIL mode, or a (height, width[, 1 | 3 | 4]) array, as an 8-bit grey image of mode "L".

    EXIF orientation is applied, transparency lies on black, colour becomes ITU-R 601 luma (exact where R = G = B), and
    more than 8 bits go through [`to_uint8`].
    """
    if not isinstance(image, Image.Image):
        array = to_uint8(np.asarray(image))
        return to_grey(Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array))
    if orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode in ("L", "1"):
        return image.convert("L")
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(to_uint8(np.asarray(image)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.composite(image.convert("L"), Image.new("L", image.size), image.getchannel("A"))
    return image.convert("RGB").convert("L")
