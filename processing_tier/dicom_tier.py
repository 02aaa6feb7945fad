"""A DICOM file that holds a radiograph to 8-bit grey levels."""

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

from .grey_levels_tier import count_patterns, percentiles, spread
from .limits_tier import (
    CUT_SHORT,
    MAX_FILE_BYTES,
    MAX_HEADER_READS,
    MAX_RLE_BYTES,
    MAX_SEQUENCE_BYTES,
    MAX_VALUE_BYTES,
    Refusal,
    check_pixels,
    check_scans,
    has_end,
)

NOT_RADIOGRAPHS = (  # DICOM modalities; radiographs come as CR, DX, RG, RF, OT or without one
    "AU BI BMD CT DG DOC ECG ES GM HC IO IVUS KO LS MG MR NM OCT OP OPT PR PT PX RTDOSE RTIMAGE RTPLAN RTSTRUCT "
    "SEG SM SR US VL XA XC"
).split()
PHOTOMETRIC = {  # by samples per pixel
    1: ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"),
    3: ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"),
}
RADIOGRAPH_CLASSES = ("ComputedRadiography", "DigitalXRay", "SecondaryCapture", "XRayRadiofluoroscopic", "Hardcopy")
DEFLATED, EXPLICIT = b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.1\0\0\0"  # transfer syntaxes, of one length
PYDICOM_LOCK = threading.Lock()


def decode_dicom(source: bytes | Any, name: str) -> tuple[np.ndarray, tuple[float, float] | None]:
    """
    The picture of a single-frame DICOM file, or of a `pydicom.Dataset`, which is left as it is.

    Returns:
        `tuple[np.ndarray, tuple[float, float] | None]`: (height, width[, 3]) levels 0..255, and mm from row to row and
        from column to column.
    """
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
        levels = (array >> max(header.bits - 8, 0)).astype(np.uint8)
    else:
        levels = np.take(table, array.view(f"u{array.itemsize}"))
    return levels, header.pixel_spacing


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
