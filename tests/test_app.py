"""The command tier-app before its page opens: the sentences about bad arguments."""

import importlib.util

import pytest

from app import LOOPBACK, main, parse


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "name a model. `make demo` makes one to look at: it trains on synthetic radiographs in some minutes."),
        (["a", "b", "c"], "3 models are too many: name one, or two to see them side by side."),
        (["a", "a"], "a is named twice: name two different models, or one."),
        (["a", "--port", "70000"], "--port must be a number from 1 to 65535, but is 70000."),
        (["a", "--prot", "1"], "unknown option --prot: did you mean --port?"),
    ],
)
def test_bad_arguments(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2 and sentence in capsys.readouterr().err


def test_it_listens_on_this_machine_unless_told_otherwise():
    assert parse(["a"]).host == LOOPBACK == "127.0.0.1"
    assert parse(["a", "b", "--host", "0.0.0.0"]).host == "0.0.0.0"


def test_a_model_that_does_not_exist(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([str(tmp_path / "absent"), "--port", "1025"])
    message = capsys.readouterr().err
    if importlib.util.find_spec("gradio") is None:
        assert "the page needs Gradio; install it: pip install 'tier-clip[app]'." in message
    else:
        assert "absent" in message and "not" in message
    assert exit_.value.code == 2 and "Traceback" not in message
