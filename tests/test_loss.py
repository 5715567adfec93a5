"""Assigner, loss and decoder against slow references written from the rules, object by object."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from utils.anchors import RawMap, best_possible_recall, best_ratio, decode, decode_box, fit_anchors
from utils.assigner import Matches, assign
from utils.boxes import area, ciou, clip, cxcywh_to_xyxy, intersection, iou, xyxy_to_cxcywh
from utils.config import Hyp
from utils.loss import detection_loss, loss_settings

STRIDES = (8, 16, 32)
ANCHORS = torch.tensor([[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119], [116, 90, 156, 198, 373, 326]], dtype=torch.float32).view(3, 3, 2)


def random_targets(rng: np.random.Generator, count: int, batch: int, nc: int) -> Tensor:
    rows = [
        [rng.integers(batch), rng.integers(nc), rng.uniform(0.01, 0.99), rng.uniform(0.01, 0.99), rng.uniform(0.02, 0.9), rng.uniform(0.02, 0.9)]
        for _ in range(count)
    ]
    return torch.tensor(rows, dtype=torch.float32).view(-1, 6)


def random_maps(seed: int, batch: int, nc: int, height: int, width: int) -> list[RawMap]:
    generator = torch.Generator().manual_seed(seed)
    maps = []
    for stride in STRIDES:
        h, w = height // stride, width // stride
        shapes = ((batch, 3, 4, h, w), (batch, 3, h, w), (batch, 3, nc, h, w))
        maps.append(RawMap(*(torch.randn(*shape, generator=generator).requires_grad_() for shape in shapes)))
    return maps


def slow_assign(targets: Tensor, anchors: Tensor, height: int, width: int, anchor_t: float) -> set[tuple[int, ...]]:
    """(object, anchor, row, column) by the rule: side ratios below anchor_t; own cell and the nearer neighbour on each axis."""
    found = set()
    for n, (_, _, cx, cy, w, h) in enumerate(targets.tolist()):
        x, y = cx * width, cy * height
        for a, (aw, ah) in enumerate(anchors.tolist()):
            if max(w * width / aw, aw / (w * width), h * height / ah, ah / (h * height)) >= anchor_t:
                continue
            column, row = math.floor(x), math.floor(y)
            cells = [(row, column)]
            if x - column < 0.5 and column >= 1:
                cells.append((row, column - 1))
            if x - column > 0.5 and column + 1 < width:
                cells.append((row, column + 1))
            if y - row < 0.5 and row >= 1:
                cells.append((row - 1, column))
            if y - row > 0.5 and row + 1 < height:
                cells.append((row + 1, column))
            found |= {(n, a, *cell) for cell in cells}
    return found


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(0, 12), level=st.integers(0, 2))
def test_assigner_equals_the_slow_one(seed: int, count: int, level: int) -> None:
    targets = random_targets(np.random.default_rng(seed), count, 4, 3)
    anchors, (height, width) = ANCHORS[level] / STRIDES[level], (192 // STRIDES[level], 256 // STRIDES[level])
    m = assign(targets, torch.stack([anchors, anchors * 0 + 1e6]), [(height, width), (1, 1)], 4.0)
    assert not m.valid[1].any()
    m = Matches(*(part[0][m.valid[0]] for part in m))
    # several objects may share a cell: compare by object, recognised by its box
    size = torch.tensor([width, height])
    fast = set()
    for _, place, anchor, box, cls in zip(*m, strict=True):
        image, y, x, a = np.unravel_index(int(place), (4, height, width, 3))
        assert torch.equal(anchor, anchors[a])
        centre = (box[:2] + torch.tensor([x, y])) / size
        n = int(
            (
                (targets[:, 2:4] - centre).abs().sum(1) + (targets[:, 4:6] - box[2:] / size).abs().sum(1)
                + (targets[:, 0] != int(image)) + (targets[:, 1] != cls)
            ).argmin()
        )
        fast.add((n, int(a), int(y), int(x)))
    assert len(fast) == len(m.place)
    assert fast == slow_assign(targets, anchors, height, width, 4.0)


def slow_ciou(a: list[float], b: list[float]) -> float:
    ax0, ay0, ax1, ay1 = a[0] - a[2] / 2, a[1] - a[3] / 2, a[0] + a[2] / 2, a[1] + a[3] / 2
    bx0, by0, bx1, by1 = b[0] - b[2] / 2, b[1] - b[3] / 2, b[0] + b[2] / 2, b[1] + b[3] / 2
    shared = max(0.0, min(ax1, bx1) - max(ax0, bx0)) * max(0.0, min(ay1, by1) - max(ay0, by0))
    overlap = shared / (a[2] * a[3] + b[2] * b[3] - shared)
    c2 = (max(ax1, bx1) - min(ax0, bx0)) ** 2 + (max(ay1, by1) - min(ay0, by0)) ** 2
    d2 = (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2
    v = 4 / math.pi**2 * (math.atan(b[2] / b[3]) - math.atan(a[2] / a[3])) ** 2
    alpha = v / (1 - overlap + v) if v else 0.0
    return overlap - d2 / c2 - alpha * v


box_strategy = st.tuples(st.floats(0, 50), st.floats(0, 50), st.floats(0.5, 40), st.floats(0.5, 40))


@settings(max_examples=100, deadline=None)
@given(box_strategy, box_strategy)
def test_ciou_equals_its_formula(a: tuple[float, ...], b: tuple[float, ...]) -> None:
    assert float(ciou(torch.tensor([a]), torch.tensor([b]))[0]) == pytest.approx(slow_ciou(list(a), list(b)), abs=1e-4)


def test_ciou_of_equal_boxes_is_one_and_its_gradient_finite() -> None:
    boxes = torch.tensor([[5.0, 5, 3, 4], [0, 0, 1e-3, 10]], requires_grad=True)
    value = ciou(boxes, boxes.detach())
    assert torch.allclose(value, torch.ones(2), atol=1e-3)
    value.sum().backward()
    assert torch.isfinite(boxes.grad).all()


def slow_bce(logit: float, wanted: float, positive: float = 1.0) -> float:
    log_p, log_q = -math.log1p(math.exp(-logit)), -math.log1p(math.exp(logit))
    return -(positive * wanted * log_p + (1 - wanted) * log_q)


def slow_loss(maps: list[RawMap], targets: Tensor, hyp: Hyp, nc: int, imgsz: int, smoothing: float) -> tuple[float, float, float]:
    box_sum = obj_sum = cls_sum = 0.0
    for raw, anchors_px, stride, balance in zip(maps, ANCHORS, STRIDES, (4.0, 1.0, 0.4), strict=True):
        anchors = anchors_px / stride
        batch, _, height, width = raw.obj.shape
        wanted = torch.zeros(raw.obj.shape)
        matches = sorted(slow_assign(targets, anchors, height, width, hyp.anchor_t))
        boxes, classes = [], []
        for n, a, row, column in matches:
            image, cls, cx, cy, w, h = targets[n].tolist()
            s = [1 / (1 + math.exp(-float(v))) for v in raw.box[int(image), a, :, row, column]]
            predicted = [column + 2 * s[0] - 0.5, row + 2 * s[1] - 0.5, float(anchors[a][0]) * (2 * s[2]) ** 2, float(anchors[a][1]) * (2 * s[3]) ** 2]
            value = slow_ciou(predicted, [cx * width, cy * height, w * width, h * height])
            boxes.append(1 - value)
            cell = (int(image), a, row, column)
            wanted[cell] = max(float(wanted[cell]), value, 0.0)
            for c in range(nc):
                target = 1 - smoothing / 2 if c == int(cls) else smoothing / 2
                classes.append(slow_bce(float(raw.cls[int(image), a, c, row, column]), target, hyp.cls_pw))
        if boxes:
            box_sum += sum(boxes) / len(boxes)
            if nc > 1:
                cls_sum += sum(classes) / len(classes)
        cells = [slow_bce(x, t, hyp.obj_pw) for x, t in zip(raw.obj.flatten().tolist(), wanted.flatten().tolist(), strict=True)]
        obj_sum += balance * sum(cells) / len(cells)
    return box_sum * hyp.box, obj_sum * hyp.obj * (imgsz / 640) ** 2, cls_sum * hyp.cls * nc / 80


@pytest.mark.parametrize(("nc", "smoothing", "weights"), [(1, 0.0, (1.0, 1.0)), (3, 0.0, (1.0, 1.0)), (3, 0.1, (1.5, 0.7))])
def test_loss_equals_the_slow_one(nc: int, smoothing: float, weights: tuple[float, float]) -> None:
    hyp = Hyp(cls_pw=weights[0], obj_pw=weights[1])
    for seed in range(4):
        targets = random_targets(np.random.default_rng(seed), 5, 2, nc)
        maps = random_maps(seed, 2, nc, 128, 160)
        terms = detection_loss(maps, targets, ANCHORS, STRIDES, loss_settings(hyp, nc, 3, 320, smoothing))
        expected = slow_loss([RawMap(*(t.detach() for t in raw[:3])) for raw in maps], targets, hyp, nc, 320, smoothing)
        assert [float(t) for t in terms[1:]] == pytest.approx(expected, rel=1e-4, abs=1e-6)
        assert float(terms.total) == pytest.approx(2 * sum(expected), rel=1e-4)


def test_loss_does_not_depend_on_the_order_of_targets() -> None:
    targets = random_targets(np.random.default_rng(3), 40, 2, 2)
    maps = random_maps(0, 2, 2, 96, 96)
    settings_ = loss_settings(Hyp(), 2, 3, 96)
    losses = [
        float(detection_loss(maps, targets[torch.randperm(40, generator=torch.Generator().manual_seed(i))], ANCHORS, STRIDES, settings_).total)
        for i in range(4)
    ]
    assert np.ptp(losses) < 1e-6 * losses[0] + 1e-7


def test_packed_logits_give_the_same_loss_and_gradient() -> None:
    """The coupled head's maps are views of one tensor, whose gradient is put together by hand."""
    targets, settings_ = random_targets(np.random.default_rng(1), 30, 2, 3), loss_settings(Hyp(), 3, 3, 96)
    generator = torch.Generator().manual_seed(0)
    gradients = []
    together = [torch.randn(2, 96 // s, 96 // s, 3, 8, generator=generator).requires_grad_() for s in STRIDES]
    for packed in (True, False):
        views = [t.permute(0, 3, 4, 1, 2) for t in together]
        maps = [RawMap(v[:, :, :4], v[:, :, 4], v[:, :, 5:], t if packed else None) for v, t in zip(views, together, strict=True)]
        total = detection_loss(maps, targets, ANCHORS, STRIDES, settings_).total
        gradients.append((total, *torch.autograd.grad(total, together)))
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-8)


def test_rows_of_padding_change_nothing() -> None:
    """Targets of size 0 fill a batch up to a length that is compiled for."""
    targets, maps, settings_ = random_targets(np.random.default_rng(1), 7, 2, 2), random_maps(0, 2, 2, 96, 96), loss_settings(Hyp(), 2, 3, 96)
    parts = [detection_loss(maps, rows, ANCHORS, STRIDES, settings_) for rows in (targets, torch.cat([targets, torch.zeros(9, 6)]))]
    parameters = [t for raw in maps for t in raw[:3]]
    for one, other in zip(*(torch.autograd.grad(part.total, parameters) for part in parts), strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-9)
    assert torch.allclose(parts[0].total, parts[1].total)


def test_batch_without_objects_is_finite_and_only_objectness() -> None:
    maps = random_maps(0, 2, 3, 64, 64)
    terms = detection_loss(maps, torch.zeros(0, 6), ANCHORS, STRIDES, loss_settings(Hyp(), 3, 3, 64))
    terms.total.backward()
    assert terms.box == 0 and terms.cls == 0 and terms.obj > 0
    assert all(torch.isfinite(raw.obj.grad).all() for raw in maps)


def test_focal_loss_is_smaller_where_it_is_easy() -> None:
    targets = random_targets(np.random.default_rng(0), 5, 2, 1)
    maps = random_maps(0, 2, 1, 64, 64)
    plain, focal = (detection_loss(maps, targets, ANCHORS, STRIDES, loss_settings(Hyp(fl_gamma=g), 1, 3, 64)) for g in (0.0, 2.0))
    assert 0 < focal.obj < plain.obj and focal.box == plain.box


@pytest.mark.parametrize("levels", [1, 2, 3, 4, 5, 6])
def test_any_number_of_levels_has_a_balance(levels: int) -> None:
    assert len(loss_settings(Hyp(), 1, levels, 640).balance) == levels


def test_decode_equals_cell_by_cell() -> None:
    maps = [RawMap(*(t.detach() for t in raw[:3])) for raw in random_maps(1, 2, 2, 64, 96)]
    rows = []
    for raw, anchors, stride in zip(maps, ANCHORS, STRIDES, strict=True):
        for a in range(3):
            for y in range(raw.obj.shape[2]):
                for x in range(raw.obj.shape[3]):
                    box = decode_box(raw.box[1, a, :, y, x][None], torch.tensor([[x, y]]), anchors[a][None] / stride)[0] * stride
                    rows.append(torch.cat([box, raw.obj[1, a, y, x].sigmoid()[None], raw.cls[1, a, :, y, x].sigmoid()]))
    assert torch.allclose(decode(maps, ANCHORS, STRIDES)[1], torch.stack(rows), atol=1e-4)


def test_boxes_conversions_and_overlap() -> None:
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 50, (20, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.1, 30, (20, 2))], 1)
    assert np.allclose(cxcywh_to_xyxy(xyxy_to_cxcywh(boxes)), boxes)
    assert torch.allclose(cxcywh_to_xyxy(xyxy_to_cxcywh(torch.from_numpy(boxes))), torch.from_numpy(boxes))
    clipped = clip(boxes, 40, 30)
    assert clipped.min() >= 0 and clipped[:, [0, 2]].max() <= 40 and clipped[:, [1, 3]].max() <= 30
    assert np.array_equal(clip(torch.from_numpy(boxes), 40, 30).numpy(), clipped)
    overlap = iou(boxes, boxes)
    assert np.allclose(np.diag(overlap), 1) and np.allclose(overlap, overlap.T) and overlap.max() <= 1 + 1e-12
    assert np.allclose(np.diag(intersection(boxes, boxes)), area(boxes))
    assert iou(np.zeros((1, 4)), np.zeros((1, 4)))[0, 0] == 0


def test_anchor_fit_recovers_the_sizes_of_a_dataset() -> None:
    rng = np.random.default_rng(0)
    centres = np.array([[10, 14], [40, 30], [120, 160]])
    sizes = np.concatenate([c * np.exp(rng.normal(0, 0.05, (200, 2))) for c in centres])
    fitted = fit_anchors(sizes, 3, 4.0, np.random.default_rng(1))
    assert np.allclose(fitted, centres, rtol=0.1)
    assert best_possible_recall(sizes, fitted, 4.0) == 1.0
    assert best_possible_recall(sizes, np.array([[2000.0, 2000]]), 4.0) == 0.0
    slow = [max(min(w / a, a / w, h / b, b / h) for a, b in fitted) for w, h in sizes]
    assert np.allclose(best_ratio(sizes, fitted), slow)
    with pytest.raises(ValueError, match="distinct"):
        fit_anchors(np.array([[5.0, 5], [5, 5]]), 3, 4.0, rng)
