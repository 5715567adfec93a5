"""data/loader.py: which pictures, in which order and size, is a function of (seed, epoch) alone, and every box comes along."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.dataset import ImageStore, Sample, load_data, load_split
from data.labels import Labels
from data.loader import Batch, Draw, EvaluationBatches, Pictures, TrainBatches, evaluation_batches, make_loader, one_ahead, rect_batches, sent_ahead
from data.plan import draw_boxes
from data.render import render
from utils.boxes import cxcywh_to_xyxy
from utils.config import Hyp
from utils.errors import UserError

HYP = Hyp(mixup=0.5, copy_paste=0.5)


@pytest.fixture(scope="module")
def samples(tiny_data: Path) -> list[Sample]:
    return load_split(load_data(tiny_data), "train", quiet=True)[0]


def invented(sizes: list[tuple[int, int]]) -> list[Sample]:
    """Samples without files."""
    return [Sample(Path(f"{i}.png"), width, height, Labels.from_rows([])) for i, (width, height) in enumerate(sizes)]


def equal(a: Batch, b: Batch) -> bool:
    views = all(x.index == y.index and np.array_equal(x.matrix, y.matrix) for x, y in zip(a.views, b.views, strict=True))
    return torch.equal(a.images, b.images) and torch.equal(a.targets, b.targets) and views


# ---------------------------------------------------------------------------------------------- order


def make_order(samples: list[Sample], epoch: int = 0, start: int = 0, **settings: bool) -> TrainBatches:
    order = TrainBatches(samples, 5, 64, 32, seed=3, **settings)
    order.epoch, order.start = epoch, start
    return order


@pytest.mark.parametrize("rect", [False, True])
@pytest.mark.parametrize("multi_scale", [False, True])
def test_an_epoch_shows_every_image_once(samples: list[Sample], rect: bool, multi_scale: bool) -> None:
    epochs = []
    for epoch in range(3):
        batches = list(make_order(samples, epoch, rect=rect, multi_scale=multi_scale))
        assert sorted(map(len, batches)) == [1, 5, 5, 5] and len(make_order(samples, rect=rect)) == 4
        assert sorted(draw.index for batch in batches for draw in batch) == list(range(16))
        assert all(draw.epoch == epoch and draw.repeat == 0 for batch in batches for draw in batch)
        epochs.append([draw.index for batch in batches for draw in batch])
    assert len({tuple(order) for order in epochs}) == 3, "another order every epoch"


@pytest.mark.parametrize("settings", [{}, {"rect": True}, {"multi_scale": True}, {"rect": True, "multi_scale": True}])
def test_a_resumed_epoch_goes_on_where_it_stopped(samples: list[Sample], settings: dict[str, bool]) -> None:
    whole = list(make_order(samples, 2, **settings))
    assert whole == list(make_order(samples, 2, **settings)), "asked twice, the same"
    for start in range(5):
        assert list(make_order(samples, 2, start, **settings)) == whole[start:]
    weighted, resumed = make_order(samples, 2, **settings), make_order(samples, 2, 2, **settings)
    weighted.weights = resumed.weights = np.arange(1.0, 17.0)
    assert list(weighted)[2:] == list(resumed), "repeats are counted over the batches that are skipped"


def test_another_seed_is_another_order(samples: list[Sample]) -> None:
    orders = [list(TrainBatches(samples, 5, 64, 32, seed)) for seed in (0, 1, 2**40)]
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_multi_scale_sizes_are_multiples_of_the_stride_in_their_range(samples: list[Sample]) -> None:
    order = TrainBatches(samples, 2, 320, 32, 0, multi_scale=True)
    sizes = []
    for epoch in range(20):
        order.epoch = epoch
        for batch in order:
            assert len({(draw.width, draw.height) for draw in batch}) == 1, "one size in a batch"
            sizes.append((batch[0].width, batch[0].height))
    assert all(w == h and w % 32 == 0 and 160 <= w <= 480 for w, h in sizes)
    assert {w for w, _ in sizes} == set(range(160, 481, 32)), "all of them occur"
    small = TrainBatches(samples, 2, 32, 32, 0, multi_scale=True)
    assert min(draw.width for batch in small for draw in batch) == 32, "never nothing"


def test_image_weights_decide_how_often(samples: list[Sample]) -> None:
    order = TrainBatches(samples, 4, 64, 32, 0)
    order.weights = np.array([8.0] + [0.0] * 7 + [1.0] * 8)
    shown = np.zeros(16)
    for epoch in range(60):
        order.epoch = epoch
        draws = [draw for batch in order for draw in batch]
        assert len(draws) == 16
        for index in range(16):
            repeats = [draw.repeat for draw in draws if draw.index == index]
            assert repeats == list(range(len(repeats))), "each showing has a number of its own"
            shown[index] += len(repeats)
    assert shown[0] / shown.sum() == pytest.approx(0.5, abs=0.05) and not shown[1:8].any() and shown[8:].min() > 20


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4000), st.integers(1, 4000)), min_size=1, max_size=30), st.integers(1, 8), st.sampled_from([0.0, 0.5]))
def test_rectangles_hold_every_image_with_less_padding(sizes: list[tuple[int, int]], batch_size: int, padding: float) -> None:
    samples = invented(sizes)
    batches = rect_batches(samples, batch_size, 640, 32, padding)
    assert sorted(int(i) for indices, _, _ in batches for i in indices) == list(range(len(samples)))
    assert all(len(indices) <= batch_size for indices, _, _ in batches)
    square = 640 + 32 * (padding > 0)
    for indices, width, height in batches:
        assert width % 32 == 0 and height % 32 == 0 and 32 <= width <= square and 32 <= height <= square
        for index in indices:
            w, h = sizes[index]
            scale = 640 / max(w, h)
            assert w * scale <= width + 1e-6 and h * scale <= height + 1e-6, "the longer side still reaches 640 pixels"


def test_rectangles_by_hand() -> None:
    wide, tall = [(640, 320), (640, 310)], [(300, 640), (310, 640)]
    batches = rect_batches(invented(wide + tall + [(500, 500)]), 2, 640, 32, 0.0)
    assert [(sorted(map(int, indices)), width, height) for indices, width, height in batches] == [([0, 1], 640, 320), ([3, 4], 640, 640), ([2], 320, 640)]
    padded = rect_batches(invented(wide), 2, 640, 32, 0.5)
    assert [(width, height) for _, width, height in padded] == [(672, 352)]


def test_evaluation_shows_every_image_once(samples: list[Sample]) -> None:
    for rect in (False, True):
        batches = EvaluationBatches(samples, 5, 96, 32, rect)
        draws = [draw for batch in batches for draw in batch]
        assert len(batches) == 4 and sorted(draw.index for draw in draws) == list(range(16))
        assert list(batches) == list(batches)
        if not rect:
            assert [draw.index for draw in draws] == list(range(16)) and {(d.width, d.height) for d in draws} == {(96, 96)}


# ---------------------------------------------------------------------------------------------- pictures


def test_a_picture_is_its_plan_drawn(samples: list[Sample]) -> None:
    store = ImageStore(samples)
    pictures = Pictures(samples, store, HYP, seed=5)
    draw = Draw(2, 7, 0, 96, 64)
    image, targets, view = pictures[draw]
    plan = pictures.plan(draw)
    classes, boxes = draw_boxes(plan, samples)
    assert np.array_equal(image, render(plan, store)) and image.shape == (64, 96, 3)
    assert targets.dtype == np.float32 and np.array_equal(targets[:, 0], classes)
    np.testing.assert_allclose(cxcywh_to_xyxy(targets[:, 1:].astype(np.float64)) * (96, 64, 96, 64), boxes, atol=1e-3)
    assert (view.index, view.path, view.width, view.height) == (7, samples[7].path, samples[7].width, samples[7].height)


def test_epoch_index_repeat_and_seed_make_another_picture(samples: list[Sample]) -> None:
    pictures, base = Pictures(samples, ImageStore(samples), HYP, seed=5), Draw(2, 7, 0, 64, 64)
    image = pictures[base][0]
    assert np.array_equal(image, pictures[base][0])
    for other in (base._replace(epoch=3), base._replace(index=8), base._replace(repeat=1)):
        assert not np.array_equal(image, pictures[other][0])
    assert not np.array_equal(image, Pictures(samples, ImageStore(samples), HYP, seed=6)[base][0])


def test_validation_pictures_are_letterboxed_and_lead_back(samples: list[Sample]) -> None:
    for rect in (False, True):
        seen = 0
        for batch in evaluation_batches(samples, 96, 5, 32, rect=rect):
            height, width = batch.images.shape[2:]
            for position, view in enumerate(batch.views):
                rows = batch.targets[batch.targets[:, 0] == position].numpy().astype(np.float64)
                corners = cxcywh_to_xyxy(rows[:, 2:]) * (width, height, width, height)
                scale, shift = view.matrix[[0, 1], [0, 1]], view.matrix[:2, 2]
                original = (corners.reshape(-1, 2, 2) * scale + shift).reshape(-1, 4)
                labels = samples[view.index].labels
                np.testing.assert_allclose(original, labels.boxes * np.tile((view.width, view.height), 2), atol=1e-2)
                assert max(view.width / scale[0], view.height / scale[1]) == pytest.approx(96, abs=0.6), "the longer side has --img pixels"
                seen += 1
        assert seen == 16


def test_a_batch_numbers_its_images(samples: list[Sample]) -> None:
    pictures = Pictures(samples, ImageStore(samples), None)
    batch = pictures.__getitems__([Draw(0, index, 0, 64, 64) for index in (5, 0, 9)])  # 0 is a background
    assert batch.images.shape == (3, 3, 64, 64) and batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.targets[:, 0].tolist() == [0.0] * len(samples[5].labels) + [2.0] * len(samples[9].labels)
    assert torch.equal(batch.images[1].permute(1, 2, 0), torch.from_numpy(pictures[Draw(0, 0, 0, 64, 64)][0]))
    empty = pictures.__getitems__([Draw(0, 0, 0, 64, 64)])
    assert empty.targets.shape == (0, 6) and empty.targets.dtype == torch.float32


# ---------------------------------------------------------------------------------------------- workers


def drawn(samples: list[Sample], workers: int, epochs: tuple[int, ...], start: int = 0, keep: bool = False) -> list[Batch]:
    store, order = ImageStore(samples), TrainBatches(samples, 4, 64, 32, seed=1, multi_scale=True)
    if keep:
        store.keep(quiet=True)
    loader = make_loader(Pictures(samples, store, HYP, seed=1), order, workers)
    found = []
    for epoch in epochs:
        order.epoch, order.start = epoch, start if epoch == epochs[0] else 0
        found += list(loader)
    return found


def test_workers_cache_and_resuming_change_nothing(samples: list[Sample]) -> None:
    expected = drawn(samples, 0, (0, 1))
    assert len(expected) == 8 and not equal(expected[0], expected[4])
    for found in (drawn(samples, 2, (0, 1)), drawn(samples, 0, (0, 1), keep=True), drawn(samples, 2, (0, 1), keep=True)):
        assert len(found) == 8 and all(map(equal, found, expected))
    for workers in (0, 2):
        resumed = drawn(samples, workers, (0, 1), start=3)
        assert len(resumed) == 5 and all(map(equal, resumed, expected[3:]))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_breaks_during_training_is_named_in_one_line(samples: list[Sample], tmp_path: Path, workers: int) -> None:
    broken = tmp_path / "坏.png"
    broken.write_bytes(samples[0].path.read_bytes()[:300])
    mine = [replace(samples[0], path=broken), *samples[1:4]]
    with pytest.raises(UserError) as found:
        list(make_loader(Pictures(mine, ImageStore(mine), None), EvaluationBatches(mine, 2, 64, 32, False), workers))
    assert str(found.value).startswith(f"{broken}: the image is damaged") and "\n" not in str(found.value)


def test_one_item_is_made_ahead_and_no_more() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(4):
            made.append(number)
            yield number
        raise UserError("the fifth")

    ahead = one_ahead(items())
    assert next(ahead) == 0
    for _ in range(200):  # the thread makes the second without being asked
        if len(made) == 2:
            break
        time.sleep(0.01)
    assert made == [0, 1]
    with pytest.raises(UserError, match="the fifth"):
        list(ahead)
    assert made == [0, 1, 2, 3] and list(one_ahead(iter(range(5)))) == [0, 1, 2, 3, 4] and list(one_ahead(iter(()))) == []


def test_sent_ahead_gives_every_item_with_its_images() -> None:
    pairs = [(number, torch.full((1, 3, 2, 2), number, dtype=torch.uint8)) for number in range(3)]
    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        sent = list(sent_ahead(iter(pairs), torch.device(device)))
        assert [(item, images.unique().tolist(), images.device.type) for item, images in sent] == [(number, [number], device) for number in range(3)]


def test_a_gpu_is_sent_one_batch_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for the streams: what is asked of the device, in which order."""
    log: list[str] = []

    class Stream:
        def __init__(self, *_: object) -> None: ...

        def record_event(self) -> str:
            log.append("event")
            return "event"

        def wait_event(self, event: object) -> None:
            log.append(f"wait for {event}")

    class Images:
        def __init__(self, number: int) -> None:
            self.number, self.device = number, "gpu"

        def to(self, device: object, non_blocking: bool) -> Images:
            log.append(f"send {self.number}")
            return self

        def record_stream(self, stream: object) -> None:
            log.append(f"keep {self.number}")

    monkeypatch.setattr("torch.cuda.Stream", Stream)
    monkeypatch.setattr("torch.cuda.stream", lambda _: nullcontext())
    monkeypatch.setattr("torch.cuda.current_stream", Stream)
    for number, _ in sent_ahead(((number, Images(number)) for number in range(3)), SimpleNamespace(type="cuda")):  # type: ignore[arg-type, misc]
        log.append(f"use {number}")
    get = ["wait for event", "keep {0}", "use {0}"]
    first, second, third = ([line.format(number) for line in get] for number in range(3))
    assert log == ["send 0", "event", "send 1", "event", *first, "send 2", "event", *second, *third]


def test_a_loader_can_be_left_early_and_used_again(samples: list[Sample]) -> None:
    loader = evaluation_batches(samples, 64, 4, 32, rect=False, workers=1)
    first = next(iter(loader))
    again = list(loader)
    assert len(again) == len(loader) == 4 and equal(first, again[0])
