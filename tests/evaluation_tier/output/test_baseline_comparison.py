import base64
import hashlib
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from saved_results import save_result

from evaluation_tier.output.baseline_comparison import baseline_tables, models_table, write_baseline_comparison
from evaluation_tier.output.metrics_file import write_metrics
from evaluation_tier.output.page import SCRIPT
from evaluation_tier.output.speed_file import write_speeds
from evaluation_tier.output.tables import text_table
from evaluation_tier.statistics.baseline_comparison import compare_with_baseline
from evaluation_tier.statistics.resampling import Resampling

LABELS = {"A": (1, 1, 0, 0) * 5}


@pytest.fixture
def comparison(tmp_path) -> dict:
    scores = {"first": [0.9, 0.1, 0.8, 0.0], "second": [0.9, 0.8, 0.1, 0.0], "<third>": [0.9, 0.3, 0.8, 0.0]}
    named = {name: save_result(tmp_path / name, {"A": of * 5}, LABELS) for name, of in scores.items()}
    metrics = json.loads((named["second"] / "metrics.json").read_text())
    metrics["protocol"]["prompts"] = "chexzero"
    sizes = {"m": {"parameters": 151_277_313, "image_size": 224}}
    write_metrics(named["second"] / "metrics.json", {**metrics, "sizes": sizes})
    return compare_with_baseline(named, resampling=Resampling(100))


def test_tables(comparison):
    comparison["results"]["second"]["gain"]["mean"]["auroc"] |= {"p_bootstrap": 0.0001, "p_holm": 0.0002}
    for result in comparison["results"].values():
        for part in (result["mean"], result["findings"]["A"]):
            part["auroc_ci95"] = [0.5, 1.0]
        if "gain" in result:
            for part in (result["gain"]["mean"], result["gain"]["findings"]["A"]):
                part["auroc"]["difference_ci95"] = [-0.25, 0.5]
    tables = baseline_tables(comparison)
    table = models_table(comparison)
    assert tables["models"] == [table] and table.sortable
    assert text_table(table.header, table.rows, table.align).splitlines() == [
        "Model    Parameters  Pixels   Mean of 1 (95 % CI)           A (95 % CI)",
        "-------  ----------  ------  --------------------  --------------------",
        "first             –       –  0.750 (0.500, 1.000)  0.750 (0.500, 1.000)",
        "second      151.3 M     224  1.000 (0.500, 1.000)  1.000 (0.500, 1.000)",
        "<third>           –       –  0.750 (0.500, 1.000)  0.750 (0.500, 1.000)",
    ]
    assert models_table(comparison, with_findings=False).header == table.header[:4]
    (table,) = tables["differences"]
    assert text_table(table.header, table.rows, table.align).splitlines() == [
        "Finding    Model    AUROC, baseline  AUROC   Difference (95 % CI)       p  p, Holm",
        "---------  -------  ---------------  -----  ---------------------  ------  -------",
        "Mean of 1  second             0.750  1.000  0.250 (-0.250, 0.500)  <0.001   <0.001",
        "Mean of 1  <third>            0.750  0.750  0.000 (-0.250, 0.500)   1.000    1.000",
        "A          second             0.750  1.000  0.250 (-0.250, 0.500)   0.034    0.068",
        "A          <third>            0.750  0.750  0.000 (-0.250, 0.500)   1.000    1.000",
    ]
    assert "Holm: corrected for the 2 models that are compared with the baseline in the same number" in table.note
    (table,) = tables["compared"]
    assert table.rows[1] == ("second", "runs/second", "Prompts: chexzero (baseline: report)", "–", "–")


def test_known_training_data_are_a_notice(comparison, tmp_path):
    exposure = {"exposure": "X was trained on mine", "exposure_overlap": ["runs/second"]}
    comparison["results"]["second"] |= exposure
    write_baseline_comparison(tmp_path, comparison)
    page = (tmp_path / "comparison.html").read_text()
    assert '<p class="notice">The evaluated data may be training data of second: X was trained on mine.</p>' in page
    assert baseline_tables(comparison)["compared"][0].rows[1][-1] == "X was trained on mine"


def test_columns_that_no_result_recorded_are_left_out(comparison):
    for result in comparison["results"].values():
        result |= {"parameters": None, "image_size": []}
    assert models_table(comparison).header == ("Model", "Mean of 1 (95 % CI)", "A (95 % CI)")


def test_images_per_second(tmp_path):
    """Of an ensemble those of its members one after another; a dash without a measurement."""
    scores = [0.9, 0.1, 0.8, 0.0] * 5
    named = {name: save_result(tmp_path / name, {"A": scores}, LABELS) for name in ("one", "two", "cached", "old")}
    on_cpu = {"images": 20, "device": "CPU, 2 threads", "dtype": "float32"}
    speeds = {"one": [1234.5], "two": [100.0, 25.0], "cached": [None]}
    for name, of_models in speeds.items():
        members = {f"m{i}": {**on_cpu, "images_per_second": speed} for i, speed in enumerate(of_models)}
        write_speeds(named[name] / "speed.json", members)
    comparison = compare_with_baseline(named, resampling=Resampling(100))
    assert [result["images_per_second"] for result in comparison["results"].values()] == [1234.5, 20.0, None, None]
    table = models_table(comparison)
    assert table.header[:2] == ("Model", "Images/s") and [row[1] for row in table.rows] == ["1,230", "20", "–", "–"]
    assert "without reading and decoding them, on CPU, 2 threads, float32. A dash there: all embed" in table.note
    write_speeds(named["old"] / "speed.json", {"m": {**on_cpu, "device": "NVIDIA H200", "images_per_second": 4.0}})
    comparison = compare_with_baseline(named, resampling=Resampling(100))
    told = "CPU, 2 threads, float32 (one, two); NVIDIA H200, float32 (old): compare only those of the same device."
    assert told in models_table(comparison).note
    for path in write_baseline_comparison(tmp_path / "out", comparison):
        if path.suffix in (".md", ".tex", ".html"):
            assert "Images/s" in path.read_text() and "1,230" in path.read_text()


@pytest.mark.parametrize("text", ["{", "[]", '{"models": {"m": {}}}', '{"models": {"m": {"images_per_second": 0}}}'])
def test_a_damaged_file_of_speeds_is_named(tmp_path, text):
    named = {name: save_result(tmp_path / name, {"A": LABELS["A"]}, LABELS) for name in "ab"}
    (named["b"] / "speed.json").write_text(text)
    with pytest.raises(ValueError, match=r"b/speed\.json .*: delete it, or evaluate the model again"):
        compare_with_baseline(named, resampling=Resampling(10))


def test_files(comparison, tmp_path):
    pytest.importorskip("matplotlib")
    paths = write_baseline_comparison(tmp_path / "new", comparison)
    assert sorted(path.name for path in paths) == [f"comparison.{end}" for end in ("html", "json", "md", "png", "tex")]
    assert json.loads((tmp_path / "new" / "comparison.json").read_text()) == comparison
    latex = (tmp_path / "new" / "comparison.tex").read_text()
    assert r"\textless{}third\textgreater{} & -- & -- & 0.750" in latex
    before = {path.name: path.read_bytes() for path in paths}
    again = write_baseline_comparison(tmp_path / "new", comparison)
    assert {path.name: path.read_bytes() for path in again} == before


def test_the_page_sorts_its_tables_by_a_script_of_its_own(comparison, tmp_path):
    write_baseline_comparison(tmp_path, comparison)
    page = (tmp_path / "comparison.html").read_text()
    assert page.count('class="sortable"') == 2 and "&lt;third&gt;" in page
    assert "The protocols of first and second differ (Prompts)" in page
    (script,) = re.findall(r"<script>(.*)</script>", page, re.DOTALL)
    assert script == SCRIPT.read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in page
    assert "http:" not in page and "https:" not in page


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_order_of_the_script():
    cells = ["0.750 (0.5, 1.0)", "–", "1,151.3 M", "<0.001", "-0.250 (-0.3, 0.1)", "151.3 M"]
    program = f"""{SCRIPT.read_text()}
        const keys = {json.dumps(cells)}.map((text) => [sortKey(text, true), text]);
        const order = (sign) => [...keys].sort((a, b) => compareKeys(a[0], b[0], sign)).map((pair) => pair[1]);
        const names = ["b", "–", "A"].map((text) => sortKey(text, false)).sort((a, b) => compareKeys(a, b, 1));
        console.log(JSON.stringify([order(1), order(-1), names]));"""
    found = subprocess.run(["node", "-e", program], capture_output=True, text=True, check=True, timeout=60).stdout
    ascending = ["-0.250 (-0.3, 0.1)", "<0.001", "0.750 (0.5, 1.0)", "151.3 M", "1,151.3 M", "–"]
    assert json.loads(found)[:2] == [ascending, [*ascending[-2::-1], "–"]]
    assert json.loads(found)[2][-2:] == ["A", "b"]


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_means_stay_below_the_rows_that_the_script_sorts():
    rows = [("b", "0.9", ""), ("a", "0.7", ""), ("Mean", "0.8", "summary first"), ("Gap", "0.2", "summary")]
    program = f"""{SCRIPT.read_text()}
        const cell = (text, name) => ({{
          textContent: text, attributes: {{}}, classList: {{contains: (other) => name.split(" ").includes(other)}},
          getAttribute(key) {{ return this.attributes[key] ?? null; }},
          setAttribute(key, value) {{ this.attributes[key] = value; }},
          removeAttribute(key) {{ delete this.attributes[key]; }},
        }});
        const rows = {json.dumps(rows)}.map(([first, second, name]) => ({{
          ...cell("", name), cells: [cell(first, ""), cell(second, "r")],
        }}));
        const body = {{rows, append(...moved) {{ this.rows = moved; }}}};
        const table = {{tHead: {{rows: [{{cells: [cell("", ""), cell("", "r")]}}]}}, tBodies: [body]}};
        const orders = [1, 1, 0].map((column) => {{
          sortRows(table, column);
          return body.rows.map((row) => row.cells[0].textContent);
        }});
        console.log(JSON.stringify(orders));"""
    found = subprocess.run(["node", "-e", program], capture_output=True, text=True, check=True, timeout=60).stdout
    assert json.loads(found) == [["b", "a", "Mean", "Gap"], ["a", "b", "Mean", "Gap"], ["a", "b", "Mean", "Gap"]]


def test_many_rows_leave_the_figure_to_the_means(tmp_path):
    pytest.importorskip("matplotlib")
    generator = np.random.default_rng(0)
    heights = {}
    for number in (2, 26):
        findings = {f"F{i}": LABELS["A"] for i in range(number)}
        named = {
            name: save_result(
                tmp_path / f"{name}{number}", {finding: generator.random(20) for finding in findings}, findings
            )
            for name in "abcd"
        }
        paths = write_baseline_comparison(tmp_path / "out", compare_with_baseline(named, resampling=Resampling(130)))
        from PIL import Image

        with Image.open(paths[0]) as image:
            heights[number] = image.size[1]
    assert heights[26] < heights[2]  # 3 rows, and not 3 * 27; of two findings 3 * 3 and their headings
