import json

import datasets
import numpy as np
from PIL import Image
from preparation import options

from processing_tier import read_radiograph
from processing_tier.prepare.options import PrepareOptions
from processing_tier.prepare.plan import describe_source
from processing_tier.prepare.run import prepare
from processing_tier.prepare.summary import SOURCE_HEADING
from processing_tier.readers.hub import read_hub


def test_options_of_a_reader_are_recorded(tmp_path):
    data = "mimic_cxr:/archives/mimic,labels=negbio,reports=/home/me/reports.zip"
    recorded = PrepareOptions(data).recorded()
    assert recorded["data"] == "mimic_cxr"
    assert recorded["reader_options"] == {"labels": "negbio", "reports": "reports.zip"}
    prepare(PrepareOptions("phantom:num_images=2", splits=("train",)), tmp_path / "out", num_workers=1)
    assert json.loads((tmp_path / "out" / "prepare.json").read_text())["reader_options"] == {"num_images": "2"}
    assert "\n- Options of the reader: num_images=2.\n" in (tmp_path / "out" / "README.md").read_text()


def test_summary(table, tmp_path):
    out = tmp_path / "out"
    summary = prepare(options(table), out)
    assert json.loads((out / "summary.json").read_text()) == summary
    split = summary["splits"]["train"]
    assert (split["images"], split["patients"], split["studies"]) == (14, 7, 7)
    assert split["views"] == {"LATERAL": 1, "PA": 13}
    assert split["findings"] == {"Edema": {"1": 4, "0": 4, "-1": 3, "blank": 3}}
    assert split["empty"] == {"findings": 2, "impression": 2, "report": 2}
    assert split["words"]["impression"] == [2.0, 2.0, 2.0] and split["words"]["findings"] == [5.0, 5.0, 5.0]
    # "Same report." of the studies s0 and s1; two images of one study with one text do not count
    assert split["studies_with_the_report_of_another"] == 2
    card = (out / "README.md").read_text()
    assert "| images " in card and "num_examples: 14" in card and SOURCE_HEADING in card
    assert str(tmp_path) not in "".join(path.read_text() for path in out.glob("*.[!p]*") if path.suffix != ".jpg")
    assert datasets.load_dataset_builder(str(out)).info.splits["train"].num_examples == 14
    sheet = Image.open(out / "sheet.jpg")
    assert sheet.size == (6 * 256, 4 * 272) and np.asarray(sheet)[:256].std() > 10
    # A prepared data set prepared once more keeps what its card says of the source
    (out / "README.md").write_text(card.partition(SOURCE_HEADING)[0] + SOURCE_HEADING + "\nFrom a hospital.\n")
    prepare(options(out, size=16), tmp_path / "smaller")
    assert (tmp_path / "smaller" / "README.md").read_text().endswith(SOURCE_HEADING + "\nFrom a hospital.\n")
    assert min(read_radiograph(read_hub(tmp_path / "smaller", "train")[0]["image"]).size) == 16


def test_card_repeats_the_terms():
    assert "PhysioNet Credentialed Health Data License" in describe_source("mimic_cxr_jpg:/archives/mimic")
    assert "do not show real patients" in describe_source("phantom:num_images=2")
    assert describe_source("/archives/reports.csv").startswith("reports.csv, as its owner has it. The terms of its")
