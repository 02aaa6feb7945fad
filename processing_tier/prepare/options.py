"""The options of a preparation, and how they are recorded in its output."""

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path

from processing_tier.readers import origin_name, parse_data
from processing_tier.records.labels import parse_label_values
from processing_tier.records.table_options import TableOptions, parse_columns


@dataclass(frozen=True)
class PrepareOptions:
    """
    All options that the output depends on.

    Args:
        data (`str`): see [`read_records`].
        columns (`dict[str, str]`, *optional*), image_root (`str`, *optional*), sheet (`str`, *optional*):
            See [`TableOptions`].
        label_values (`tuple[str, ...]`, *optional*): WORD=LABEL each, see [`parse_label_values`].
        splits (`tuple[str, ...]`, *optional*): by default all that the data have.
        views (`str`, *optional*, defaults to `"frontal"`): `"frontal"` or `"all"`.
        text (`str`, *optional*):
            Leave out records without this text: `"impression"`, `"findings"` or `"both"` (either of them).
        report_style (`str`, *optional*, defaults to `"standard"`):
            `"standard"` keeps the sections of the reader; `"chexzero"` and `"tier"` extract them again from the whole
            report, see [`extract_sections`].
        size (`int`, *optional*, defaults to 512):
            Shortest side of the stored images in pixels: enough for every geometry of [`TierImageProcessor`] up to
            this size. Smaller images keep their size. `None` keeps all sizes.
        format (`str`, *optional*, defaults to `"jpeg"`): `"jpeg"` or `"png"`.
        quality (`int`, *optional*, defaults to 95): JPEG quality.
        shard_images (`int`, *optional*, defaults to 1000): largest number of images in a shard.
        seed (`int`, *optional*, defaults to 0): seed of the order of the records.
    """

    data: str
    columns: dict[str, str] | None = None
    image_root: str | None = None
    sheet: str | None = None
    label_values: tuple[str, ...] | None = None
    splits: tuple[str, ...] | None = None
    views: str = "frontal"
    text: str | None = None
    report_style: str = "standard"
    size: int | None = 512
    format: str = "jpeg"
    quality: int = 95
    shard_images: int = 1000
    seed: int = 0

    @property
    def table(self) -> TableOptions:
        """How the readers read a table."""
        return TableOptions(self.columns, self.image_root, self.sheet, parse_label_values(self.label_values))

    def recorded(self) -> dict:
        """The options for `prepare.json` and the card, without the folders of this machine."""
        options = {key: value for key, value in dataclasses.asdict(self).items() if key != "image_root"}
        if self.format != "jpeg":
            del options["quality"]
        return options | {
            "data": origin_name(self.data),
            "reader_options": {
                name: Path(value).name if isinstance(value, str) else value
                for name, value in parse_data(self.data)[2].items()
                if name != "image_root"
            },
            "splits": list(self.splits) if self.splits else None,
            "label_values": list(self.label_values) if self.label_values else None,
        }


def make_options(args: argparse.Namespace) -> PrepareOptions:
    """The options from the arguments of `tier-prepare`."""
    return PrepareOptions(
        data=args.data,
        columns=parse_columns(args.columns),
        image_root=args.image_root,
        sheet=args.sheet,
        label_values=tuple(args.label_values) if args.label_values else None,
        splits=tuple(args.splits) if args.splits else None,
        views=args.views,
        text=args.text,
        report_style=args.report_style,
        size=None if args.size == "original" else int(args.size),
        format=args.format,
        quality=args.quality or 95,
        shard_images=args.shard_images,
        seed=args.seed,
    )
