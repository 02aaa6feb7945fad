"""The command `eval_zeroshot.py` on tiny models and data, for the tests of the command and of what it does."""

from pathlib import Path

import pytest
from tiny_models import save_tiny_clip

from eval_zeroshot import main
from processing_tier.readers import read_records

PHANTOM = "phantom:num_images=40,image_size=64"


def save_two_models(folder: Path) -> list[Path]:
    """Two tiny models with random weights, saved."""
    return [save_tiny_clip(folder / f"model{seed}", seed, image_pooling="patch_mean") for seed in range(2)]


def run(*arguments, capsys) -> tuple[str, str]:
    main([str(argument) for argument in arguments])
    return capsys.readouterr()


def fails(*arguments, capsys) -> str:
    """The one line that the command fails with; exit code 2."""
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    assert exit_.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    lines = output.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("eval_zeroshot.py: error: "), output.err
    return lines[0].removeprefix("eval_zeroshot.py: error: ")


def write_table(folder: Path, **columns) -> Path:
    """The phantom's 40 images as a table; columns take the place of its own, None drops one."""
    frame = read_records(PHANTOM, "validation").remove_columns(["image", "masks"]).to_pandas()
    for record, name in zip(read_records(PHANTOM, "validation"), frame["image_id"], strict=True):
        (folder / f"{name}.png").write_bytes(record["image"]["bytes"])
    frame["image"] = frame["image_id"] + ".png"
    for name, values in columns.items():
        frame[name] = values
    frame.to_csv(folder / "table.csv", index=False)
    return folder / "table.csv"
