"""Limits of all image readers (bytes, pixels, steps), and `Refusal`, the error that states the fault of a file."""

MAX_FILE_BYTES = 256 * 2**20  # of a deflated DICOM file, also after inflation
MAX_PIXELS = 80_000_000  # four times the largest detectors; below PIL's own bomb warning
MAX_ASPECT = 100  # longest side over shortest; "crop" enlarges the longest as well
MAX_PARTS = 100_000  # chunks, segments or tiles of a file; each takes a step in Python
MAX_SCANS = 100  # of a JPEG: even a small one may have any number; common ones have up to 12
MAX_SLOW_BYTES = 16 * 2**20  # of formats that Pillow decodes in Python, which takes some seconds
MAX_HEADER_READS = 200_000  # pydicom takes two or three for an element of a header, and 300 bytes
MAX_VALUE_BYTES, MAX_SEQUENCE_BYTES = 2**16, 4 * 2**20  # of an element of a header that is used

CUT_SHORT = "the file is cut short, its end is missing; copy or download it again."
DAMAGED = "the image cannot be decoded: the file is damaged; replace the file or leave it out."


class Refusal(ValueError):
    """A reason without the name of the file and without a decoder's message, which may quote the patient's data."""


def check_bytes(size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise Refusal(f"the file is larger than {MAX_FILE_BYTES >> 20} MiB; export it as a smaller PNG.")


def check_pixels(width: int, height: int, samples: int = 1) -> None:
    """
    Raises:
        `Refusal`: no pixels, too many, or a strip. A pixel may have several samples of 16 bits.
    """
    limit = MAX_PIXELS // samples
    if width < 1 or height < 1:
        raise Refusal(f"an image of {width}x{height} pixels is empty; replace the file or leave it out.")
    if width * height > limit:
        raise Refusal(f"{width}x{height} pixels are more than {limit:,}; export it at a smaller size.")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise Refusal(
            f"{width}x{height} pixels are not a radiograph: one side is more than {MAX_ASPECT} times the other; leave "
            "it out."
        )
