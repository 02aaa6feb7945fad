import pytest
from small_trainings import ENTROPY_WEIGHTS, small_arguments
from transformers import set_seed

from modeling_tier import TierCLIPModel, TierDualEncoderModel
from processing_tier.phantom.dataset import make_phantom
from training_tier.data.collator import PairCollator
from training_tier.data.pairs import PairDataset, PairOptions
from training_tier.loop.contrastive import TierTrainer
from training_tier.start.presets import preset_config

AUGMENTED = PairOptions(augmentation="standard")


@pytest.fixture(scope="module")
def evaluation():
    return make_phantom(24, seed=0, image_size=64, split="validation")


@pytest.fixture
def make_contrastive(tmp_path, phantom, evaluation, processor):
    """
    Function that makes a Trainer of two epochs. `config` holds `preset` and fields of the model's configuration, and
    further options are those of the training.
    """

    def make(
        records=phantom,
        folder="run",
        config=None,
        pairs=AUGMENTED,
        images=None,
        avoid_duplicates=False,
        **options,
    ):
        set_seed(0)
        config = {"preset": "tiniest", **ENTROPY_WEIGHTS, **(config or {})}
        config = preset_config(config.pop("preset"), processor.tokenizer, **config)
        model_class = TierCLIPModel if config.model_type == "tier_clip" else TierDualEncoderModel
        arguments = small_arguments(tmp_path / folder, **options)
        return TierTrainer(
            model=model_class(config),
            args=arguments,
            train_dataset=PairDataset(records, processor.image_processor, pairs, images),
            eval_dataset=PairDataset(evaluation, processor.image_processor),
            data_collator=PairCollator(processor.tokenizer, arguments.pad_to_multiple_of),
            processing_class=processor,
            avoid_duplicates=avoid_duplicates,
            findings=["Consolidation", "Pneumothorax"],
        )

    return make
