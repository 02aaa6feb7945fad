"""
The common tests of transformers on our classes and, beside them, on the library's own. pytest does not collect this
file by itself: tests/modeling_tier/test_common.py runs it where the library's test modules are importable.
"""

import unittest

import torch
from transformers import CLIPConfig, CLIPForImageClassification, CLIPImageProcessorPil, CLIPModel, CLIPProcessor
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_image_processing_common import ImageProcessingTester, ImageProcessingTestMixin
from transformers_tests.test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor
from transformers_tests.test_processing_common import ProcessorTesterMixin

from modeling_tier import (
    TierCLIPConfig,
    TierCLIPForImageClassification,
    TierCLIPModel,
    TierDualEncoderConfig,
    TierDualEncoderForImageClassification,
    TierDualEncoderModel,
)
from processing_tier import TierImageProcessor, TierProcessor, train_tokenizer

TOWER = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {**TOWER, "vocab_size": 99, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 98}
IMAGE = {**TOWER, "image_size": 32, "patch_size": 8}
RESNET = {"model_type": "resnet", "embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1]}
WEIGHTS = {"token_entropy_weight": 0.3, "patch_entropy_weight": 0.2}


class TowerTester:
    """What the library asks about one tower."""

    batch_size, is_training, projection_dim = 3, True, 64
    num_hidden_layers, hidden_size, num_attention_heads = (
        TOWER[name] for name in ("num_hidden_layers", "hidden_size", "num_attention_heads")
    )

    def __init__(self, parent: unittest.TestCase, names: tuple[str, ...]):
        self.parent, self.names = parent, names
        self.seq_length = 7 if "input_ids" in names else (IMAGE["image_size"] // IMAGE["patch_size"]) ** 2 + 1

    def get_config(self):
        return self.parent.make_config()

    def prepare_config_and_inputs_for_common(self):
        input_ids = ids_tensor([self.batch_size, 7], 97) + 1
        input_ids[:, 0], input_ids[:, -1] = TEXT["bos_token_id"], TEXT["eos_token_id"]
        inputs = {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "pixel_values": floats_tensor([self.batch_size, 3, IMAGE["image_size"], IMAGE["image_size"]]),
            "return_loss": True,
        }
        return self.get_config(), {name: inputs[name] for name in self.names}


class ModelTester(TowerTester):
    """And about the whole model."""

    def __init__(self, parent: unittest.TestCase, names: tuple[str, ...]):
        super().__init__(parent, names)
        if "input_ids" in names:
            self.text_model_tester = TowerTester(parent, ("input_ids", "attention_mask"))
            self.vision_model_tester = TowerTester(parent, ("pixel_values",))


class CommonCases(ModelTesterMixin):
    """With the settings that the library's CLIPModelTest has."""

    config_class = CLIPConfig
    config_options: dict = {}
    input_names = ("input_ids", "attention_mask", "pixel_values", "return_loss")
    additional_model_inputs = ["pixel_values"]
    test_resize_embeddings = False
    _is_composite = True

    def setUp(self):
        self.model_tester = ModelTester(self, self.input_names)
        self.config_tester = ConfigTester(
            self,
            config_class=self.config_class,
            has_text_modality=False,
            common_properties=["projection_dim", "logit_scale_init_value"],
        )

    def make_config(self):
        options = {"text_config": dict(TEXT), "vision_config": dict(IMAGE), "projection_dim": 64}
        return self.config_class(**{**options, **self.config_options})

    def test_config(self):
        self.config_tester.run_common_tests()


class CLIPTest(CommonCases, unittest.TestCase):
    all_model_classes = (CLIPModel,)


class TierCLIPTest(CommonCases, unittest.TestCase):
    all_model_classes = (TierCLIPModel,)
    config_class, config_options = TierCLIPConfig, WEIGHTS


class TierCLIPPatchMeanTest(CommonCases, unittest.TestCase):
    all_model_classes = (TierCLIPModel,)
    config_class, config_options = TierCLIPConfig, {**WEIGHTS, "image_pooling": "patch_mean"}


class TierDualEncoderTest(CommonCases, unittest.TestCase):
    all_model_classes = (TierDualEncoderModel,)
    config_class = TierDualEncoderConfig
    config_options = {
        **WEIGHTS,
        "text_config": {**TEXT, "model_type": "bert"},
        "vision_config": {**IMAGE, "model_type": "vit"},
    }


class TierDualEncoderResNetTest(TierDualEncoderTest):
    config_options = {**TierDualEncoderTest.config_options, "vision_config": dict(RESNET), "image_size": 32}
    skip_test_image_features_output_shape = (
        True  # the library looks for hidden_size, which a ResNet has one of a stage
    )


class CLIPClassificationTest(CommonCases, unittest.TestCase):
    all_model_classes = (CLIPForImageClassification,)
    input_names = ("pixel_values",)


class MultiLabelCases(CommonCases):
    input_names = ("pixel_values",)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if return_labels:  # the library gives them to classes that it knows by name, as one class per image
            inputs["labels"] = torch.ones(TowerTester.batch_size, self.make_config().num_labels)
        return inputs


class TierCLIPClassificationTest(MultiLabelCases, unittest.TestCase):
    all_model_classes = (TierCLIPForImageClassification,)
    config_class = TierCLIPConfig


class TierDualEncoderClassificationTest(MultiLabelCases, unittest.TestCase):
    all_model_classes = (TierDualEncoderForImageClassification,)
    config_class, config_options = TierDualEncoderConfig, TierDualEncoderTest.config_options


def tokenizer():
    return train_tokenizer(["The lungs are clear.", "lower newer"] * 4, vocab_size=700)


class CLIPProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = CLIPProcessor

    @classmethod
    def _setup_tokenizer(cls):
        return tokenizer()

    @classmethod
    def _setup_image_processor(cls):
        return CLIPImageProcessorPil()


class TierProcessorTest(CLIPProcessorTest):
    processor_class = TierProcessor

    @classmethod
    def _setup_image_processor(cls):
        return TierImageProcessor()


class CLIPImageProcessorTester(ImageProcessingTester):
    image_processor_class = CLIPImageProcessorPil

    def __init__(self, parent, **kwargs):
        super().__init__(parent, **{"size": {"height": 32, "width": 32}, "do_center_crop": False, **kwargs})

    def _get_image_processing_classes(self):
        return {"pil": self.image_processor_class}


class CLIPImageProcessorTest(ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = CLIPImageProcessorTester


class TierImageProcessorTester(CLIPImageProcessorTester):
    image_processor_class = TierImageProcessor


class TierImageProcessorTest(ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = TierImageProcessorTester
