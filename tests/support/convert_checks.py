"""Running tier-convert in a test."""

import pytest
import torch
from transformers import AutoModel, AutoProcessor

import convert_tier
from modeling_tier.checkpoints import to_openclip
from processing_tier import TierProcessor


def run(capsys, *arguments):
    convert_tier.main([str(argument) for argument in arguments])
    return capsys.readouterr().out


def refuse(capsys, *arguments):
    with pytest.raises(SystemExit) as error:
        convert_tier.main([str(argument) for argument in arguments])
    assert error.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("convert_tier.py: error: ") and message.count("\n") == 1
    return message


def load(folder):
    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    config, image_processor = model.config, processor.image_processor
    assert isinstance(processor, TierProcessor)
    assert (config.pixel_mean, config.pixel_std) == (list(image_processor.image_mean), list(image_processor.image_std))
    assert {path.name for path in folder.parent.iterdir() if "partial" in path.name} == set()
    return model.eval(), processor


def save_openai(model, path):
    torch.save(to_openclip(model.to_clip())[0], path)
    return path


def pixels_of(processor, picture, **options):
    return processor.image_processor(picture, return_tensors="pt", **options)["pixel_values"]
