"""What the tests of DICOM share: a ramp of all 12-bit values, and parts of files that pydicom does not write."""

import numpy as np
from pydicom.dataset import Dataset

from processing_tier import read_radiograph

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)


def read(source) -> np.ndarray:
    return np.asarray(read_radiograph(source))


def lut_item(table: np.ndarray, first: int = 0, bits: int = 16) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(table) % 2**16, first, bits])
    item.LUTData = np.asarray(table).astype("<u2").tobytes()
    item["LUTData"].VR = "OW"
    return item


def jpeg_lossless(array: np.ndarray, precision: int) -> bytes:
    """JPEG process 14, selection value 1 (ITU T.81 annex H), with a code of five bits for each category."""
    height, width = array.shape
    bits = []
    for y in range(height):
        for x in range(width):
            if x:
                prediction = int(array[y, x - 1])
            else:
                prediction = int(array[y - 1, 0]) if y else 1 << (precision - 1)
            difference = (int(array[y, x]) - prediction + 2**15) % 2**16 - 2**15
            category = 16 if difference == -(2**15) else abs(difference).bit_length()
            bits.append(format(category, "05b"))
            if 0 < category < 16:
                bits.append(
                    format(difference if difference > 0 else difference + (1 << category) - 1, f"0{category}b")
                )
    bits = "".join(bits)
    bits += "1" * (-len(bits) % 8)
    body = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\x00")

    def segment(marker: int, content: bytes) -> bytes:
        return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content

    size = bytes([precision]) + height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return b"".join(
        [
            b"\xff\xd8",
            segment(0xC3, size + bytes([1, 1, 0x11, 0])),
            segment(0xC4, bytes([0, 0, 0, 0, 0, 17, *[0] * 11, *range(17)])),
            segment(0xDA, bytes([1, 1, 0, 1, 0, 0])),
            body,
            b"\xff\xd9",
        ]
    )
