import time

import numpy as np
import pytest
import torch

from evaluation_tier.models import single_pass
from evaluation_tier.models.embedding import image_embedders
from evaluation_tier.models.single_pass import evaluate_models
from evaluation_tier.models.speed import Speed, describe_device


class Slow:
    """A consumer whose own embedder and whose work on a batch take long; neither is the model's."""

    rows, patches = None, False

    def __init__(self, model):
        self.embedders = {**image_embedders(model, False), "own": self.embed}

    def embed(self, batch):
        time.sleep(0.3)
        return {}

    def add(self, rows, outputs):
        time.sleep(0.3)

    def finish(self, own):
        pass

    def start(self, name, model, processor):
        return [self]


@pytest.mark.slow
def test_only_the_embedding_is_timed(tier_model, phantom, monkeypatch):
    """The images of 3 batches, without the first."""
    consumer, batches = Slow(tier_model[0]), []
    monkeypatch.setattr(Speed, "wait", lambda speed: batches.append(time.perf_counter()))
    speed = evaluate_models({"m": tier_model}, [phantom.select(range(5))], [consumer], batch_size=2)["m"]
    inside = [after - before for before, after in zip(batches[::2], batches[1::2], strict=True)]
    assert speed["images"] == 3 and speed["seconds"] == pytest.approx(sum(inside[1:]), abs=0.02)
    assert speed["seconds"] < 0.3 and speed["images_per_second"] == 3 / speed["seconds"]
    assert (speed["batch_size"], speed["dtype"]) == (2, "float32")


@pytest.mark.slow
def test_a_single_batch_counts_and_rows_of_several_data_sets_add_up(tier_model, phantom):
    one = evaluate_models({"m": tier_model}, [phantom.select(range(2))], [Slow(tier_model[0])], batch_size=2)["m"]
    assert one["images"] == 2

    class Two(Slow):
        def start(self, name, model, processor):
            return [self, self]

    evaluated = [phantom.select(range(4)), phantom.select(range(3))]
    assert evaluate_models({"m": tier_model}, evaluated, [Two(tier_model[0])], batch_size=2)["m"]["images"] == 5


def test_a_model_without_parameters_and_the_names_of_devices():
    class Bare(torch.nn.Module):
        device = torch.device("cpu")

    speed = Speed(Bare(), 4)
    assert speed.describe() == {
        **{"images": 0, "seconds": 0, "images_per_second": None, "batch_size": 4},
        **{"device": describe_device(torch.device("cpu")), "dtype": None},
    }
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert describe_device(torch.device("cpu")) == "CPU, 1 thread"
        torch.set_num_threads(2)
        assert describe_device(torch.device("cpu"), 3) == "3 x CPU, 2 threads"
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
def test_models_of_each_are_timed_apart(make_tier_model, phantom):
    members = {name: make_tier_model(seed) for seed, name in enumerate("ab")}
    consumers = {name: [Slow(member[0])] for name, member in members.items()}
    speeds = single_pass.evaluate_together(members, [phantom.select(np.arange(6))], consumers, batch_size=2)
    assert [speed["images"] for speed in speeds.values()] == [4, 4] and list(speeds) == ["a", "b"]
