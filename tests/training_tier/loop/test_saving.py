"""What a run writes into its folder."""

import json
from pathlib import Path


def test_checkpoints_hold_no_pickle_but_the_arguments_as_json(make_contrastive):
    trainer = make_contrastive(num_train_epochs=1)
    trainer.train()
    trainer.save_model()
    folder = trainer.args.output_dir
    with open(f"{folder}/training_args.json", encoding="utf-8") as file:
        assert json.load(file)["learning_rate"] == 5e-4
    assert not list(Path(folder).rglob("*.bin"))


def test_a_card_is_written_where_there_is_none_and_kept_where_there_is(make_contrastive, caplog):
    trainer = make_contrastive()
    trainer.training_facts = {"dataset": "phantom", "seed": 7}
    trainer.save_model()
    trainer.create_model_card(model_name="a name")
    card = Path(trainer.args.output_dir) / "README.md"
    assert "# a name" in card.read_text() and "| Seed | 7 |" in card.read_text()
    card.write_text("with results")
    trainer.create_model_card(model_name="another", tags=["tag"])
    assert card.read_text() == "with results"
    assert "tags: no effect on the model card" in caplog.text
