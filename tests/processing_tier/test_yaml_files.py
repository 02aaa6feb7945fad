"""A YAML file that somebody else wrote is read as YAML says, or refused in one sentence, at once."""

import random
import time
from pathlib import Path

import pytest
import yaml

from processing_tier.yaml_files import MAX_BYTES, read_yaml

BOMB = Path(__file__).resolve().parents[3] / "shared" / "cases" / "anchor_bomb.yaml"


def write(tmp_path, text):
    path = tmp_path / "file.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\nb: [x, 'no', no, 0.5, 5e-5, null]\nc: {d: {e: [[1]]}}\n",
        "a: &x [1, 2]\nb: *x\nc: {<<: {d: 1}, e: 2}\n",
        "",
        "- [Épanchement, 肺炎]\n",
    ],
)
def test_it_reads_what_safe_load_reads(text, tmp_path):
    assert read_yaml(write(tmp_path, text)) == yaml.safe_load(text)


def test_a_byte_order_mark_is_passed_over(tmp_path):
    assert read_yaml(write(tmp_path, b"\xef\xbb\xbfa: 1")) == {"a": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3 names 'a' twice; keep one of them."),
        ("a: {b: 1, b: 1}", "line 1 names 'b' twice; keep one of them."),
        ("a: " + "[" * 16 + "]" * 16, "line 1 is nested more than 16 levels deep; write it flatter."),
        ("- " * 500_000, "line 1 is nested more than 16 levels deep; write it flatter."),
        ("[" * 10**6, "line 1 is nested more than 16 levels deep; write it flatter."),
        (
            "".join(f"a{i}: &a{i} [{f'*a{i - 1}' if i else 1}]\n" for i in range(20)),
            "line 16 is nested more than 16 levels deep; write it flatter.",
        ),
        ("a: &a [*a]", "line 1 contains itself; write the values out."),
        ("a: &a {b: *a}", "line 1 contains itself; write the values out."),
        ("[" + "a," * 30_000 + "]", "line 1 is beyond the 20,000 values that a file may have; shorten it."),
        ("a: " + "9" * 5000, "line 1 has a number of 5000 digits; shorten it."),
        (
            "a: 2024-13-45",
            "the file is not valid YAML (month must be in 1..12); fix it.",
        ),
        (
            "a: !!python/object/apply:os.getcwd []",
            "the file is not valid YAML (line 1: could not determine a constructor for the tag "
            "'tag:yaml.org,2002:python/object/apply:os.getcwd'); fix it.",
        ),
        (b"a: \xff", "the file is not UTF-8 text; save it as UTF-8."),
        (" " * (MAX_BYTES + 1), "the file is larger than 1 MiB; shorten it."),
    ],
)
def test_what_is_refused(text, message, tmp_path):
    path, started = write(tmp_path, text), time.perf_counter()
    with pytest.raises(ValueError) as error:
        read_yaml(path)
    assert str(error.value) == f"{path}: {message}"
    assert time.perf_counter() - started < 10


def test_ten_lines_that_stand_for_a_billion_values_are_refused(tmp_path):
    lines = ["findings:", "- &l0 [x,x,x,x,x,x,x,x,x,x]"]
    lines += [f"- &l{i} [{','.join([f'*l{i - 1}'] * 10)}]" for i in range(1, 9)]
    path = write(tmp_path, "\n".join(lines))
    with pytest.raises(ValueError) as error:
        read_yaml(path)
    assert str(error.value) == f"{path}: line 6 stands for more than 20,000 values; shorten it."


@pytest.mark.skipif(not BOMB.is_file(), reason="no ../shared/cases beside the repository")
def test_the_bomb_of_the_cases_is_refused():
    with pytest.raises(ValueError, match="anchor_bomb.yaml: line 6 stands for more than 20,000 values; shorten it.$"):
        read_yaml(BOMB)


def test_a_file_that_is_not_there_and_a_folder(tmp_path):
    for path in (tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(ValueError) as error:
            read_yaml(path)
        assert str(error.value) == f"{path}: the file does not exist; check the path."


@pytest.mark.slow
def test_every_mutation_is_read_or_refused_in_one_sentence(tmp_path):
    draw = random.Random(0)
    pieces = (
        "a: - [ ] { } , & * ! !!int !!bool !!float !!binary !!timestamp <<: | > ' \" # % @ ` \n \t 0x 1e9 ~ ? 9".split(
            " "
        )
    )
    seed = "findings: &f [Edema, 'no']\nmodel: tiny\nlearning_rate: 5e-4\nx: {<<: {a: 1}, b: *f}\n"
    for _ in range(3_000):
        text = list(seed)
        for _ in range(draw.randint(1, 8)):
            place = draw.randrange(len(text) + 1)
            text[place : place + draw.randint(0, 3)] = draw.choice(pieces)
        try:
            read_yaml(write(tmp_path, "".join(text)))
        except ValueError as error:
            assert str(error).startswith(str(tmp_path)) and "\n" not in str(error)
