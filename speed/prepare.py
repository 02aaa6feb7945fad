"""
Speed and memory of tier-prepare, by the number of images and of workers.

    python speed/prepare.py --images 1000 10000 --num_workers 1 2

The images of an image folder (its train split) are repeated under new ids, patients and studies, with the reports and
labels that belong to them. Each run is the command as users start it. Memory is the largest resident set (VmHWM) of
each kind of process: the command, the process that reads the records (it ends before images are read), and the largest
worker. Images per second count the workers only; seconds count the whole command, from the start of Python to the
card. Needs Linux.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the packages, when they are not installed

from processing_tier.phantom.dataset import make_phantom  # noqa: E402

IDS = ("image_id", "patient_id", "study_id")


def write_phantoms(folder: Path, count: int = 100) -> None:
    """An image folder's split of synthetic radiographs."""
    folder.mkdir()
    phantom = make_phantom(count)
    for record in phantom.select_columns("image"):
        (folder / record["image"]["path"]).write_bytes(record["image"]["bytes"])
    frame = phantom.remove_columns(["image", "masks"]).to_pandas().rename(columns={"report": "text"})
    frame["file_name"] = [image["path"] for image in phantom["image"]]
    frame.to_csv(folder / "metadata.csv", index=False)


def write_table(folder: Path, images: int, path: Path) -> None:
    """A table of so many rows, a part at a time."""
    frame = pd.read_csv(folder / "metadata.csv", dtype=str).rename(columns={"file_name": "image", "text": "report"})
    for start in range(0, images, len(frame)):
        part = frame.head(images - start).copy()
        for name in IDS:
            part[name] = [f"{name[0]}{start + i}" for i in range(len(part))]
        part.to_csv(path, mode="a", header=start == 0, index=False)


def children_of(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:  # it has ended
        return []


def peak_of(pid: int) -> int:
    """Largest resident set in MiB so far; 0 for a process that has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    lines = [line.split() for line in status.splitlines() if line.startswith("VmHWM")]
    return int(lines[0][1]) // 1024 if lines else 0


def measure(command: list[str]) -> tuple[float, float, dict[str, int]]:
    """Seconds of the command, seconds of its workers, and MiB by role."""
    started = time.monotonic()
    log = tempfile.TemporaryFile("w+")  # a pipe would fill up, and block the command
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=log)
    peaks, first_worker, last_worker = {process.pid: 0}, None, None
    forked = []  # by the fork server, in order: the reader, then the workers
    while process.poll() is None:
        for child in children_of(process.pid):
            for pid in children_of(child):
                if pid not in forked:
                    forked.append(pid)
                    first_worker = time.monotonic() if len(forked) == 2 else first_worker
        for pid in (process.pid, *forked):
            peaks[pid] = max(peaks.get(pid, 0), peak_of(pid))
        if len(forked) > 1 and any(peak_of(pid) for pid in forked[1:]):
            last_worker = time.monotonic()
        time.sleep(0.05)
    if process.returncode:
        log.seek(0)
        raise SystemExit(f"the command failed: {log.read().splitlines()[-1]}")
    reader, *workers = (peaks[pid] for pid in forked)
    memory = {"command": peaks[process.pid], "reader": reader, "largest worker": max(workers)}
    return time.monotonic() - started, last_worker - first_worker, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="an image folder with train/metadata.csv (default: 100 phantoms)")
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10000], help="(default: 1000 10000)")
    parser.add_argument("--num_workers", type=int, nargs="+", default=[1, 2], help="(default: 1 2)")
    parser.add_argument("--size", default="512", help="size of the stored images (default: %(default)s)")
    parser.add_argument("--format", default="jpeg", help="format of the stored images (default: %(default)s)")
    args = parser.parse_args()

    phantoms = tempfile.TemporaryDirectory()
    if args.data is None:
        args.data = Path(phantoms.name)
        write_phantoms(args.data / "train")
    print("  images  workers  seconds  images/s  peak MiB: command  reader  largest worker", flush=True)
    for images in args.images:
        for workers in args.num_workers:
            with tempfile.TemporaryDirectory() as folder:
                table = Path(folder, "table.csv")
                write_table(args.data / "train", images, table)
                command = [sys.executable, "prepare_tier.py", "--data", str(table), "--output_dir", f"{folder}/out"]
                command += ["--image_root", str(args.data / "train"), "--num_workers", str(workers)]
                command += ["--views", "all", "--size", args.size, "--format", args.format]
                seconds, working, memory = measure(command)
            print(
                f"{images:8,d} {workers:8d} {seconds:8.1f} {images / working:9.0f}           "
                f"{memory['command']:7d} {memory['reader']:7d} {memory['largest worker']:15d}",
                flush=True,
            )


if __name__ == "__main__":
    main()
