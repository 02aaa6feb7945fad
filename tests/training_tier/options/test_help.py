"""The short help lists each option once, in a line that says what is true."""

from transformers import TrainingArguments

from training_tier.data.streaming import SHUFFLE_BUFFER
from training_tier.options.checks import CHOICES
from training_tier.options.help import GROUPS, KINDS, LIBRARY_OPTIONS, UNUSED, describe, own_fields
from training_tier.options.parsing import Options
from training_tier.options.training import TierTrainingArguments
from training_tier.start.presets import PRESETS


def test_each_of_our_options_is_in_one_group():
    listed = [name for names in GROUPS.values() for name in names]
    assert sorted([*listed, *UNUSED]) == sorted(own_fields()), "add a new option to GROUPS in options/help.py"
    own = {name for kind in Options.__annotations__.values() for name in kind.__dataclass_fields__}
    assert own - TrainingArguments.__dataclass_fields__.keys() <= set(listed) and len(KINDS) == len(Options._fields)


def test_what_it_says_of_the_librarys_options():
    fields = TierTrainingArguments.__dataclass_fields__
    assert not LIBRARY_OPTIONS.keys() & own_fields().keys()
    for name, (metavar, text) in LIBRARY_OPTIONS.items():
        assert name in TrainingArguments.__dataclass_fields__
        assert metavar is not None or not fields[name].default, name
        if "[" in text:
            assert f"[{fields[name].default}]" in text, name


def test_every_line_is_short_and_ends_in_the_default():
    fields = own_fields()
    assert all(len(describe(field)) < 120 for field in fields.values())
    assert describe(fields["eval_fraction"]).endswith("[0.1]")
    assert describe(fields["load_best_model_at_end"]).endswith("[true]")
    assert "[" not in describe(fields["eval_split"])


def test_the_texts_name_every_choice():
    fields = own_fields()
    for name, choices in CHOICES.items():
        assert all(choice in fields[name].metadata["help"] for choice in choices if choice is not None), name
    presets = [preset for preset in PRESETS if not preset.startswith("tiniest")]
    assert all(preset in fields["model"].metadata["help"] for preset in presets)
    assert str(SHUFFLE_BUFFER) in fields["shuffle_buffer"].metadata["help"]
