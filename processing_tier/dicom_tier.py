"""
Reads a DICOM file: its header, its stored pixels and its colours. How stored values become grey levels (window, lookup
tables, padding) is in `dicom_levels_tier.py`.
"""

import io
import logging
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from .codestreams_tier import check_filled, read_codestream, run_length_size
from .dicom_levels_tier import WINDOW_OUTSIDE, grey_table, numbers, stretch_table, value
from .grey_levels_tier import take_levels
from .limits_tier import CUT_SHORT, MAX_FILE_BYTES, MAX_HEADER_READS, Refusal, check_pixels

NOT_RADIOGRAPHS = (  # DICOM modalities; radiographs come as CR, DX, RG, RF, OT or without one
    "AU BI BMD CT DG DOC ECG ES GM HC IO IVUS KO LS MG MR NM OCT OP OPT PR PT PX RTDOSE RTIMAGE RTPLAN RTSTRUCT "
    "SEG SM SR US VL XA XC"
).split()
PHOTOMETRIC = {  # by samples per pixel
    1: ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"),
    3: ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"),
}
FLOATS = {"FloatPixelData": "Float Pixel Data", "DoubleFloatPixelData": "Double Float Pixel Data"}
COMPRESSED = {  # how encapsulated pixels and the images in them begin
    b"\xfe\xff\x00\xe0": "compressed",
    b"\xff\x4f\xff\x51": "compressed as JPEG 2000",
    b"\0\0\0\x0cjP": "compressed as JPEG 2000",
    b"\xff\xd8\xff": "compressed as JPEG",
}
RADIOGRAPH_CLASSES = ("ComputedRadiography", "DigitalXRay", "SecondaryCapture", "XRayRadiofluoroscopic", "Hardcopy")
DEFLATED, EXPLICIT = b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.1\0\0\0"  # transfer syntaxes, of one length
PYDICOM_LOCK = threading.Lock()


def decode_dicom(
    source: bytes | Any, grey_levels: str = "window"
) -> tuple[np.ndarray, tuple[float, float] | None, str | None]:
    """
    The picture of a single-frame DICOM file, or of a `pydicom.Dataset`, which is not changed.

    Returns:
        `tuple[np.ndarray, tuple[float, float] | None, str | None]`: (height, width[, 3]) levels 0..255; mm from row to
        row and from column to column; and the reason why all levels are equal, if they are.

    Raises:
        `Refusal`: anything goes wrong, except a lack of memory.
    """
    try:  # in a `try`, an import is not a requirement of a model repository that ships this file
        import pydicom
        import pydicom.pixels
    except ImportError:
        raise Refusal(
            "pydicom, which reads DICOM, is not installed: pip install pydicom, or export the image as PNG."
        ) from None
    problem = "the DICOM header cannot be read or describes no image; replace the file or leave it out."
    try:
        with quiet():
            dataset = read_dataset(pydicom, source) if isinstance(source, bytes) else source
            header = read_header(pydicom, dataset)
        problem = "the DICOM pixels cannot be decoded: the file is damaged; replace it, or export the image as PNG."
        array = stored_pixels(pydicom, dataset, header)
        problem = "a lookup table of the DICOM file is damaged; export the image as PNG or leave it out."
        with quiet():
            if header.samples == 3 or header.photometric == "PALETTE COLOR":
                return colours(pydicom, array, dataset, header), header.pixel_spacing, None
            if grey_levels == "stretch":
                table, padding = stretch_table(array, header), None
            else:
                table, padding = grey_table(array, dataset, header)
    except (Refusal, MemoryError):
        raise
    except Exception:
        raise Refusal(problem) from None
    patterns = array.view(f"u{array.itemsize}")
    levels = take_levels(table, patterns)
    return levels, header.pixel_spacing, why_blank(levels, patterns, padding)


def why_blank(levels: np.ndarray, patterns: np.ndarray, padding: np.ndarray | None) -> str | None:
    """The reason why all levels are equal, if they are. Padding does not count: it is always black."""
    if padding is not None and padding.any():
        inside = ~take_levels(padding, patterns)
        levels, patterns = levels[inside], patterns[inside]
    if levels.size and levels.min() != levels.max():
        return None
    return None if not levels.size or patterns.min() == patterns.max() else WINDOW_OUTSIDE


def colours(pydicom: ModuleType, array: np.ndarray, dataset: Any, header: SimpleNamespace) -> np.ndarray:
    """
    (height, width, 3) colours as 0..255. The largest value decides how many bits they have: the header often gives the
    number of bits that could have been stored.
    """
    if header.photometric == "PALETTE COLOR":
        patterns = np.arange(2 ** (8 * array.itemsize), dtype=f"u{array.itemsize}")
        palette = pydicom.pixels.apply_color_lut(patterns.view(array.dtype), dataset)
        shift = max(int(palette.max()).bit_length() - 8, 0)
        return (palette >> shift).astype(np.uint8)[array.view(patterns.dtype)]
    shift = max(int(array.max()).bit_length() - 8, 0)
    return (array >> shift).astype(np.uint8)


@contextmanager
def quiet() -> Iterator[None]:
    """
    Silences pydicom, whose warnings and log lines quote values of the header. Filters belong to the whole process, so
    only one thread at a time may hold this.
    """
    log = logging.getLogger("pydicom")
    with PYDICOM_LOCK, warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        propagate, log.propagate = log.propagate, False
        try:
            yield
        finally:
            log.propagate = propagate


class Deflated(Exception):
    """pydicom is about to inflate the rest of a file without a bound."""


class CountedReads(io.BytesIO):
    """The bytes of a file, with a bound on the number of elements of its header."""

    reads = 0

    def read(self, size: int | None = -1) -> bytes:
        self.reads += 1
        if self.reads > MAX_HEADER_READS:
            raise ValueError("too many elements")
        if size is None or size < 0:  # pydicom reads the rest of a file only to inflate it
            raise Deflated
        return super().read(size)


def read_dataset(pydicom: ModuleType, data: bytes) -> Any:
    """The data set of a file. A deflated one is inflated first, wherever its header says so."""
    file = CountedReads(data)
    try:
        return pydicom.dcmread(file, force=True)
    except Deflated:
        at = file.tell()
        head = data[:at].replace(DEFLATED, EXPLICIT)
        return pydicom.dcmread(CountedReads(head + inflate(data[at:])), force=True)


def inflate(data: bytes) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    body = inflater.decompress(data, MAX_FILE_BYTES)
    if inflater.unconsumed_tail:
        raise Refusal(f"the file inflates to more than {MAX_FILE_BYTES >> 20} MiB; export it as a smaller PNG.")
    if not inflater.eof:
        raise Refusal(CUT_SHORT)
    return body


def read_header(pydicom: ModuleType, dataset: Any) -> SimpleNamespace:
    """
    The header fields of a DICOM file about the pixels.

    Raises:
        `Refusal`: the pixels are missing, too many, or not of a radiograph.
    """
    meta = getattr(dataset, "file_meta", {})
    sop_class = pydicom.uid.UID(str(value(dataset, "SOPClassUID") or meta.get("MediaStorageSOPClassUID") or ""))
    radiograph = sop_class.keyword.startswith(RADIOGRAPH_CLASSES)
    if sop_class.keyword and not radiograph:  # pydicom has no keyword for a vendor's class
        what = "is not a radiograph" if "PixelData" in dataset else "holds no image"
        raise Refusal(f"a DICOM file of the class {sop_class.name} {what}; leave it out.")
    if "PixelData" not in dataset:
        floats = next((name for keyword, name in FLOATS.items() if keyword in dataset), None)
        if floats:
            raise Refusal(f"a DICOM image of floating-point pixels ({floats}) is not supported; export it as PNG.")
        if radiograph or "Rows" in dataset:
            raise Refusal("the DICOM file ends before its pixels; copy or download it again.")
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
        raise Refusal(f"a DICOM file of {frames} frames is not a radiograph; export the frame you need.")
    if modality in NOT_RADIOGRAPHS:
        raise Refusal(f"a DICOM image of the modality {modality} is not a radiograph; leave it out.")
    if header.allocated not in (8, 16):
        raise Refusal(f"a DICOM image of {header.allocated} bits is not a radiograph; export it as PNG.")
    check_pixels(header.columns, header.rows, 3 if header.photometric == "PALETTE COLOR" else header.samples)
    if header.photometric not in PHOTOMETRIC.get(header.samples, ()):
        raise Refusal("the DICOM image is neither grey nor of known colours; export it as PNG.")
    header.bits = int(value(dataset, "BitsStored", header.allocated))
    if not 1 <= header.bits <= header.allocated:
        raise Refusal(
            f"the DICOM header says that {header.bits} of {header.allocated} bits are used; replace the file."
        )
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


def stored_pixels(pydicom: ModuleType, dataset: Any, header: SimpleNamespace) -> np.ndarray:
    """
    The stored values, (height, width) or (height, width, 3) integers of 8 or 16 bits. pydicom decodes them after a
    check that they cannot take more memory than the header says.
    """
    syntax = header.transfer_syntax
    try:
        decoder = pydicom.pixels.get_decoder(syntax)
    except NotImplementedError:
        known = syntax.name if syntax.is_transfer_syntax else "an unknown transfer syntax"
        raise Refusal(f"DICOM pixels stored as {known} cannot be read; export the image as PNG.") from None
    if not decoder.is_available:
        raise Refusal(
            f"no installed package decodes {syntax.name}; pip install pylibjpeg pylibjpeg-openjpeg pylibjpeg-libjpeg, "
            "or export the image as PNG."
        )
    # All allocated bits, unchanged: pydicom would clear those above Bits Stored
    options = {"number_of_frames": 1, "bits_stored": header.allocated, "pixel_representation": 0, "view_only": True}
    is_ready = False
    if syntax.is_encapsulated:
        bits = check_frame(pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1), header)
        if syntax in pydicom.uid.JPEG2000TransferSyntaxes:  # it says itself how many bits it has
            options |= {"bits_stored": min(bits, header.allocated), "pixel_representation": header.signed}
            is_ready = True
    else:
        check_length(dataset.PixelData, header)
    if header.samples == 3 and "PlanarConfiguration" not in dataset:
        if not syntax.is_encapsulated:
            raise Refusal(
                "the DICOM header does not say how the colours are arranged (Planar Configuration); export the image "
                "as PNG."
            )
        options["planar_configuration"] = 0
    options = pydicom.pixels.utils.as_pixel_options(dataset, samples_per_pixel=header.samples, **options)
    array = decoder.as_array(dataset, **options)[0]
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return array if is_ready or header.samples == 3 else stored_values(array, dataset, header)


def stored_values(words: np.ndarray, dataset: Any, header: SimpleNamespace) -> np.ndarray:
    """
    The values of unsigned words. Overlays in bits beside the values are cleared where the header declares them. Other
    bits above Bits Stored belong to the values: the header then understates their number of bits.
    """
    width = 8 * words.itemsize
    shift = max(header.high_bit + 1 - header.bits, 0)
    used = min(shift + header.bits, width)
    overlays = 0
    for group in range(0x6000, 0x6020, 2):
        if (group, 0x0102) in dataset and (group, 0x3000) not in dataset:  # an overlay without its own data
            position = int(dataset[group, 0x0102].value)
            if used <= position < width:
                overlays |= 1 << position
    if overlays:
        words = words & words.dtype.type((2**width - 1) ^ overlays)
    if header.signed:
        signed = words.view(f"i{words.itemsize}")
        extended = (signed << (width - used)) >> (width - used)
        upper = words >> used if used < width else np.zeros(1, words.dtype)
        if ((upper == 0) | (extended == signed)).all():  # unused, or copies of the sign
            signed = extended
        words = signed
    return words >> shift if shift else words


def check_length(pixels: bytes, header: SimpleNamespace) -> None:
    """
    Raises:
        `Refusal`: the pixels are compressed but the header says otherwise, too few, or at least one row too many
        (zeros at
            the end do not count).
    """
    row = header.columns * header.samples * header.allocated // 8
    if header.photometric == "YBR_FULL_422":
        row = row * 2 // 3
    length = row * header.rows
    if len(pixels) != length and pixels.startswith(tuple(COMPRESSED)):
        kinds = [kind for mark, kind in COMPRESSED.items() if mark in pixels[:4096]]
        raise Refusal(
            f"the DICOM pixels are {kinds[-1]}, where the header says {header.transfer_syntax.name}; correct the "
            "transfer syntax or export the image as PNG."
        )
    if len(pixels) < length:
        raise Refusal(
            f"the DICOM pixels are cut short, {len(pixels):,} of {length:,} bytes; copy or download the file again."
        )
    if len(pixels.rstrip(b"\0")) >= length + max(row, 2):
        raise Refusal(
            f"the file holds {len(pixels):,} bytes of pixels where the DICOM header says {length:,}; correct the "
            "header or export the image as PNG."
        )


def check_frame(frame: bytes, header: SimpleNamespace) -> int:
    """
    The number of bits of a compressed image.

    Raises:
        `Refusal`: it ends early, or decodes to another size than the header says, which could take any amount of
        memory.
    """
    wanted = header.columns, header.rows, header.samples
    if header.transfer_syntax.keyword == "RLELossless":
        size = header.rows * header.columns * header.samples * header.allocated // 8
        if run_length_size(frame) > size + 15:  # one byte of each segment may make its length even
            raise Refusal(f"the DICOM pixels decode to more than {size:,} bytes; replace the file.")
        return header.allocated
    stream = read_codestream(frame)
    found = stream.width, stream.height, stream.components
    if found != wanted:
        raise Refusal(
            f"the compressed pixels are {found[0]}x{found[1]}x{found[2]} where the DICOM header says "
            f"{wanted[0]}x{wanted[1]}x{wanted[2]}; replace the file."
        )
    if not stream.is_whole:
        raise Refusal("the DICOM pixels are cut short; copy or download the file again.")
    check_filled(stream)
    return stream.bits
