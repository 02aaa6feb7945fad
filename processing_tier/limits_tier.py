"""What a file of an image may be at most, and the errors that say so."""

MAX_FILE_BYTES = 256 * 2**20
MAX_PIXELS = 80_000_000  # four times the largest detectors; below PIL's own bomb warning
MAX_HEADER_READS = 200_000  # pydicom reads a DICOM header in steps: two or three for an element, which takes 300 bytes
MAX_VALUE_BYTES, MAX_SEQUENCE_BYTES = 2**16, 4 * 2**20  # of a DICOM element that is looked into
MAX_RLE_BYTES = 8 * 2**20  # of what is decoded unmeasured: run lengths make 64 bytes of one
MAX_SCANS = 100  # of a JPEG, which need not be large to have any number of them; common ones have up to 12
CUT_SHORT = "{name}: the file is cut short, its end is missing; copy or download it again."


class Refusal(ValueError):
    """A reason of this file's own; pydicom raises errors of every kind, and some quote the patient's data."""


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


def has_end(codestream: bytes) -> bool:
    """Whether a JPEG, JPEG-LS or JPEG 2000 image ends with the marker that says so, and perhaps some padding."""
    return b"\xff\xd9" in codestream[-64:]
