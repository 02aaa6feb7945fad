import csv
import io

from evaluation_tier.output.csv_tables import csv_table
from evaluation_tier.output.tables import DASH, Table, format_estimate


def read(table: Table) -> list[list[str]]:
    return list(csv.reader(io.StringIO(csv_table(table))))


def test_numbers_are_numbers_and_intervals_have_columns():
    rows = (
        ("Edema", "1,234", format_estimate(0.75, (0.5, 1.0)), "<0.001"),
        ('A "B", C', DASH, format_estimate(None), "-0.250"),
        ("Mean of 2", "", "0.750", "1.2e-05"),
    )
    table = Table("t", "T", "", ("Finding", "Images", "AUROC (95 % CI)", "p"), rows, "lrrr", 1)
    assert read(table) == [
        ["Finding", "Images", "AUROC", "AUROC, 95 % CI low", "AUROC, 95 % CI high", "p"],
        ["Edema", "1234", "0.750", "0.500", "1.000", "<0.001"],
        ['A "B", C', "", "", "", "", "-0.250"],
        ["Mean of 2", "", "0.750", "", "", "1.2e-05"],
    ]


def test_formulas_are_text():
    table = Table("t", "T", "", ("=1", "+2"), (("=HYPERLINK(1)", "-0.5 (-0.6, 0.1)"), ("@x", "-x")), "ll")
    assert read(table) == [["'=1", "'+2"], ["'=HYPERLINK(1)", "'-0.5 (-0.6, 0.1)"], ["'@x", "'-x"]]
