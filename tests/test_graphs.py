"""Prediction as one function, and its recordings: which inputs are recorded, what is given back, and what happens where recording fails."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models import graphs
from models.graphs import Graphed, Recording, predictor
from models.yolo import build_model


def test_the_predictor_is_forward_and_decoding_in_the_models_precision() -> None:
    torch.manual_seed(0)
    model = build_model("models/demo.yaml").eval()
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    with torch.inference_mode():
        expected = model.decode(model(images.float() / 255))
        assert torch.equal(predictor(model)(images), expected)
        plain = predictor(model, graphs=True)  # no GPU: nothing to record
        assert not isinstance(plain, Graphed) and torch.equal(plain(images), expected)
        assert predictor(model.bfloat16())(images).isfinite().all()


def recorder(calls: list[tuple[int, ...]]) -> object:
    """A stand-in for a GPU's recording: it works on the tensors it holds and on no others, as a graph does."""

    def record(predict: graphs.Predict, images: Tensor) -> Recording:
        calls.append(tuple(images.shape))
        held, found = images.clone(), predict(images)
        return Recording(held, lambda: found.copy_(predict(held)), found)

    return record


def test_each_shape_is_recorded_once_and_replayed_on_what_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[tuple[int, ...]] = []
    monkeypatch.setattr(graphs, "record", recorder(recorded))
    run = Graphed(lambda images: images.float().sum((2, 3)))
    first, second = torch.ones(1, 3, 4, 4, dtype=torch.uint8), torch.full((1, 3, 4, 4), 2, dtype=torch.uint8)
    before, after = run(first), run(second)
    assert before.tolist() == [[16.0] * 3] and after.tolist() == [[32.0] * 3]  # the first answer has stayed as it was
    assert run(torch.ones(2, 3, 4, 4, dtype=torch.uint8)).shape == (2, 3)
    assert recorded == [(1, 3, 4, 4), (2, 3, 4, 4)]


def test_no_more_than_some_shapes_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[tuple[int, ...]] = []
    monkeypatch.setattr(graphs, "record", recorder(recorded))
    run = Graphed(lambda images: images.float().sum((2, 3)))
    for side in range(1, graphs.SHAPES + 3):
        assert run(torch.ones(1, 1, side, side, dtype=torch.uint8)).item() == side * side
    assert len(recorded) == len(run.recordings) == graphs.SHAPES


def test_what_cannot_be_recorded_runs_as_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def record(*_: object) -> Recording:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(graphs, "record", record)
    run = Graphed(lambda images: images.float().sum((2, 3)))
    for _ in range(2):
        assert run(torch.ones(1, 1, 2, 2, dtype=torch.uint8)).item() == 4
    assert capsys.readouterr().out == "warning: the network runs without CUDA graphs (operation not permitted when stream is capturing)\n"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_recording_gives_the_networks_predictions() -> None:
    torch.manual_seed(0)
    model = build_model("models/demo.yaml").eval().cuda()
    run = predictor(model, graphs=True)
    assert isinstance(run, Graphed)
    with torch.inference_mode():
        for _ in range(3):
            images = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8, device="cuda")
            torch.testing.assert_close(run(images), run.predict(images))
    assert run.works and len(run.recordings) == 1
