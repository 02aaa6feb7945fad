"""One sentence and exit code 2 from every command, and a traceback for nothing but a defect of the package."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

import app
import compare_results
import convert_tier
import eval_zeroshot
import export_tier
import predict_tier
import prepare_tier
import rank_checkpoints
import train_tier
from command_line import command_name, describe_error, one_sentence_errors

REPOSITORY = Path(train_tier.__file__).parent
SCRIPTS = {
    "tier-train": "train_tier.py",
    "tier-eval": "eval_zeroshot.py",
    "tier-prepare": "prepare_tier.py",
    "tier-convert": "convert_tier.py",
    "tier-compare": "compare_results.py",
    "tier-rank": "rank_checkpoints.py",
    "tier-predict": "predict_tier.py",
    "tier-app": "app.py",
    "tier-export": "export_tier.py",
}
COMMANDS = {
    "train_tier.py": train_tier.main,
    "eval_zeroshot.py": eval_zeroshot.main,
    "prepare_tier.py": prepare_tier.main,
    "convert_tier.py": convert_tier.main,
    "compare_results.py": compare_results.main,
    "rank_checkpoints.py": rank_checkpoints.main,
    "predict_tier.py": predict_tier.main,
    "app.py": app.main,
    "export_tier.py": export_tier.main,
}


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("train_tier.py", ["--outptu_dir", "x"], "Unknown option '--outptu_dir'; did you mean 'output_dir'?"),
        ("train_tier.py", ["--seed", "x"], "argument --seed: invalid int value: 'x'"),
        ("train_tier.py", ["--data", "absent.csv"], "absent.csv"),
        ("rank_checkpoints.py", ["absent"], "absent"),
        ("train_tier.py", ["--report_to", "nobody"], "report_to='nobody' is not known;"),
        ("train_tier.py", ["--deepspeed", "absent.json"], "deepspeed='absent.json' cannot be used: "),
        ("eval_zeroshot.py", ["m", "--data", "phantom", "--devise", "cpu"], "unknown option --devise: did you mean"),
        ("eval_zeroshot.py", ["./absent", "--data", "phantom"], "absent"),
        (
            "prepare_tier.py",
            ["--data", "x", "--output_dri", "y"],
            "unknown option --output_dri: did you mean --output_dir?",
        ),
        ("prepare_tier.py", ["--data", "x"], "the following arguments are required: --output_dir"),
        ("prepare_tier.py", ["--output_dir", "y"], "the following arguments are required: --data"),
        (
            "prepare_tier.py",
            ["--data", "x", "--output_dir", "y", "--sise", "9"],
            "unknown option --sise: did you mean --s",
        ),
        ("prepare_tier.py", ["--data", "absent.csv", "--output_dir", "y"], "absent.csv"),
        ("convert_tier.py", ["absent.pt", "out"], "absent.pt"),
        ("convert_tier.py", ["a.pt", "out", "--knd", "tier"], "unknown option --knd: did you mean --kind?"),
        ("convert_tier.py", ["a.pt", "out", "--kind", "onnx"], "invalid choice: 'onnx'"),
        ("compare_results.py", ["absent-a", "absent-b"], "absent-a"),
        ("compare_results.py", ["a"], "B is missing: name a second evaluation"),
        ("rank_checkpoints.py", ["absent", "--data", "phantom"], "The folder absent does not exist"),
        ("predict_tier.py", ["absent"], "the following arguments are required: IMAGE"),
        ("predict_tier.py", ["absent", "a.png"], "The model folder absent does not exist"),
        ("predict_tier.py", ["absent", "a.png", "--top_k", "0"], "--top_k must be at least 1, but is 0."),
        (
            "predict_tier.py",
            ["absent", "a.png", "--threshold", "2"],
            "--threshold must be a number from 0 to 1, but is 2",
        ),
        ("predict_tier.py", ["absent", "a.png", "--overwrite"], "--overwrite has no effect without --output_dir."),
        ("app.py", [], "name a model. `make demo` makes one to look at"),
        ("rank_checkpoints.py", [], "the following arguments are required: RUN"),
    ],
)
def test_bad_input_ends_each_command_with_one_sentence(command, arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        COMMANDS[command](arguments)
    told = capsys.readouterr().err
    assert stopped.value.code == 2
    assert told.startswith(f"{command}: error: ") and message in told and told.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ValueError("size=0 is too small;\n  use 1."), "size=0 is too small; use 1."),
        (ValueError(), "ValueError"),
        (FileNotFoundError(2, "No such file or directory", "a.csv"), "[Errno 2] No such file or directory: 'a.csv'"),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
        (ImportError("it needs bitsandbytes"), "it needs bitsandbytes"),
        (StrictDataclassError("the field is not a number"), "the field is not a number"),
        (SafetensorError("header too large"), "header too large"),
        (pa.lib.ArrowNotImplementedError("no such codec"), "no such codec"),
        (datasets.exceptions.DatasetGenerationError("a damaged shard"), "a damaged shard"),
        (ValueError("name 'a\x1b[31m\u202eb' is bad"), "name 'a\\x1b[31m\\u202eb' is bad"),
        (ValueError("no prompts for 'Épanchement 肺炎'"), "no prompts for 'Épanchement 肺炎'"),
        (MemoryError(), "out of memory: use smaller batches, fewer images or fewer worker processes."),
        (torch.OutOfMemoryError("CUDA"), "out of GPU memory: lower the batch size."),
        (KeyError("defect"), None),
        (RuntimeError("defect"), None),
        (AssertionError("defect"), None),
    ],
)
def test_what_is_told_of_an_error(error, sentence, capsys):
    assert describe_error(error) == sentence
    with pytest.raises(type(error) if sentence is None else SystemExit), one_sentence_errors("tier-x"):
        raise error
    assert capsys.readouterr().err == ("" if sentence is None else f"tier-x: error: {sentence}\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_version_of_every_command(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        COMMANDS[command](["--version"])
    assert capsys.readouterr().out == f"{command} {version('tier-clip')}\n"


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_name_that_the_user_typed(script, monkeypatch):
    file = f"/clone/{SCRIPTS[script]}"
    for typed, name in ((f"/bin/{script}", script), (f"{script}.exe", script), (file, SCRIPTS[script])):
        monkeypatch.setattr(sys, "argv", [typed])
        assert command_name(script, file) == name


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_version_need_no_torch_and_name_the_console_script(script):
    program = (
        "import sys; sys.argv[0] = '/bin/{script}'\n"
        "import {module}\n"
        "for option in ('--help', '--version'):\n"
        "    try: {module}.main([option])\n"
        "    except SystemExit: print({{'torch', 'transformers', 'numpy'}} & set(sys.modules))"
    )
    code = program.format(script=script, module=SCRIPTS[script].removesuffix(".py"))
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"usage: {script} ") and lines[-2].startswith(f"{script} ")
    assert lines[-1] == "set()" and lines.count("set()") == 2


def test_one_process_speaks_for_all_unless_each_may_fail_alone(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    for every_process, told in ((False, ""), (True, "tier-x: error: bad\n")):
        with pytest.raises(SystemExit, match="2"), one_sentence_errors("tier-x", every_process):
            raise ValueError("bad")
        assert capsys.readouterr().err == told


def test_ctrl_c_is_told_too(capsys):
    with pytest.raises(SystemExit, match="130"), one_sentence_errors("tier-x"):
        raise KeyboardInterrupt
    assert capsys.readouterr().err == "tier-x: interrupted; the finished parts are kept.\n"
