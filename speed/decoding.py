"""
From the bytes of a radiograph to the tensor of the model, per core: TierImageProcessor against Pillow.

    python speed/decoding.py --repetitions 9

The files are one synthetic radiograph with the noise of a film, held in memory, padded to the default 224 pixels.
Ours is `TierImageProcessor.read` and a call with `output_dtype="uint8"`. Pillow's path decodes in full, converts to
RGB as CLIP's image processor does, and resizes with the same filter; its grey variant converts to "L". More than 8
bits are windowed with numpy between; DICOM is decoded and windowed with pydicom's own functions. Times are processor
times of one core, without other programs; the paths take turns, and ratios are medians over the repetitions. The
difference is that of the grey levels (0..255) to the grey path's, over the picture without its padding.
"""

import argparse
import io
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import torch
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, JPEG2000Lossless, generate_uid
from turns import time_in_turn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the packages, when they are not installed

from processing_tier import TierImageProcessor, read_radiograph  # noqa: E402
from processing_tier.image_processing_tier import place  # noqa: E402
from processing_tier.phantom.dataset import make_phantom  # noqa: E402


def make_files(width: int, height: int, seed: int) -> dict[str, bytes]:
    """Encoded files of one picture, 12 bits where more than 8 are meant."""
    picture = read_radiograph(make_phantom(1, seed=seed, image_size=1024)[0]["image"])
    picture = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
    picture += np.random.default_rng(seed).normal(0, 1.5, picture.shape)
    deep = Image.fromarray((picture * 16).clip(0, 4095).astype(np.uint16))
    image = Image.fromarray(picture.clip(0, 255).astype(np.uint8))
    return {
        "JPEG, quality 75": encode(image, "JPEG", quality=75),
        "JPEG, quality 90": encode(image, "JPEG", quality=90),
        "JPEG, quality 95": encode(image, "JPEG", quality=95),
        "PNG, 8 bits": encode(image, "PNG"),
        "PNG, 16 bits": encode(deep, "PNG"),
        "JPEG 2000, 1:10": encode(image, "JPEG2000", irreversible=True, quality_mode="rates", quality_layers=[10]),
        "DICOM, uncompressed": make_dicom(np.asarray(deep)),
        "DICOM, JPEG 2000": make_dicom(np.asarray(deep), compress=True),
    }


def encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def make_dicom(array: np.ndarray, compress: bool = False) -> bytes:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = ComputedRadiographyImageStorage, generate_uid()
    dataset.Rows, dataset.Columns = array.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.WindowCenter, dataset.WindowWidth = 2048, 4096
    dataset.PixelData = array.astype("<u2").tobytes()
    dataset["PixelData"].VR = "OW"
    if compress:
        dataset.compress(JPEG2000Lossless)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def plain(data: bytes, mode: str, size: int) -> np.ndarray:
    """The padded square, (size, size) or (size, size, 3), as Pillow, numpy and pydicom give it."""
    if data[128:132] == b"DICM":
        dataset = pydicom.dcmread(io.BytesIO(data))
        array = pydicom.pixels.apply_windowing(dataset.pixel_array, dataset) / 4095 * 255
        image = Image.fromarray(np.rint(array).astype(np.uint8))
    else:
        image = Image.open(io.BytesIO(data))
        if image.mode == "I;16":
            array = np.asarray(image)
            low, high = np.percentile(array, (0.5, 99.5))
            image = Image.fromarray(np.rint((array - low) / (high - low) * 255).clip(0, 255).astype(np.uint8))
    image = image.convert(mode)
    height, width, top, left = place(image.height, image.width, "pad", size, size)
    square = Image.new(mode, (size, size))
    square.paste(image.resize((width, height), Image.Resampling.BICUBIC), (left, top))
    return np.asarray(square)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3, help="timed images of each path (default: 3)")
    parser.add_argument("--width", type=int, default=2500, help="width of the files in pixels (default: 2500)")
    parser.add_argument("--height", type=int, default=3000, help="height of the files in pixels (default: 3000)")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the picture (default: 0)")
    args = parser.parse_args()

    torch.set_num_threads(1)
    processor = TierImageProcessor()
    size = processor.size["height"]
    height, width, top, left = place(args.height, args.width, "pad", size, size)

    def ours(data: bytes) -> torch.Tensor:
        return processor([processor.read(data)], output_dtype="uint8", return_tensors="pt")["pixel_values"]

    print(f"{args.width}x{args.height} pixels to {size}, one thread, {args.repetitions} repetitions")
    for name, data in make_files(args.width, args.height, args.seed).items():
        paths: dict[str, Callable[[], object]] = {
            "ours": lambda data=data: ours(data),
            "RGB": lambda data=data: torch.from_numpy(plain(data, "RGB", size).copy()),
            "grey": lambda data=data: torch.from_numpy(plain(data, "L", size).copy()),
        }
        seconds = time_in_turn(paths, args.repetitions, time.process_time)
        ratios = {
            mode: statistics.median(a / b for a, b in zip(seconds[mode], seconds["ours"], strict=True))
            for mode in ("RGB", "grey")
        }
        inside = slice(top, top + height), slice(left, left + width)
        difference = np.abs(ours(data)[0, 0].numpy()[inside].astype(int) - plain(data, "L", size)[inside])
        print(
            f"{name:20s} {len(data) / 2**20:5.1f} MiB   {1 / statistics.median(seconds['ours']):6.1f} images/s   "
            f"{ratios['RGB']:5.2f} times Pillow, {ratios['grey']:5.2f} times Pillow in grey   "
            f"mean difference {difference.mean():.3f}, largest {difference.max()}"
        )


if __name__ == "__main__":
    main()
