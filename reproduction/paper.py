"""What the paper states: the rows of Table III and Table IV, its settings and its figures."""

from __future__ import annotations

from dataclasses import dataclass

MARKS = ("MSFE", "O-DH", "A-DH", "C-DH", "W-DH")


@dataclass(frozen=True)
class Printed:
    """Figures that the paper prints for a model; shares in %, None where it prints none."""

    precision: float
    recall: float
    ap: float
    params: float  # millions, Conv + BN fused
    gflops: float  # at 640 px, fused
    fps: float | None = None


@dataclass(frozen=True)
class Row:
    """A model of a table."""

    name: str  # on the command line and in folder names
    title: str  # in tables
    cfg: str  # model YAML
    marks: tuple[str, ...]  # of MARKS
    printed: Printed

    @property
    def foreign(self) -> bool:
        """Whether it is not of the YOLOv5 family: Table I's recipe and --width are not for it."""
        return self.cfg.startswith("models/baselines/")


# The paper prints Params and GFLOPs of the first and the last row; those between were counted on the authors' model definitions.
TABLE3 = (
    Row("yolov5s", "YOLOv5s", "models/yolov5s.yaml", (), Printed(96.57, 91.09, 94.88, 7.01, 15.76)),
    Row("msfe", "+ MSFE", "models/ablation/msfe.yaml", ("MSFE",), Printed(96.97, 92.54, 95.93, 8.83, 17.37)),
    Row("odh", "+ O-DH", "models/ablation/odh.yaml", ("O-DH",), Printed(96.44, 92.88, 95.93, 13.55, 27.71)),
    Row("adh", "+ A-DH", "models/ablation/adh.yaml", ("A-DH",), Printed(96.69, 93.30, 96.18, 20.79, 40.95)),
    Row("cdh", "+ C-DH", "models/ablation/cdh.yaml", ("C-DH",), Printed(96.29, 93.87, 96.56, 21.82, 42.81)),
    Row("wdh", "+ W-DH", "models/ablation/wdh.yaml", ("W-DH",), Printed(96.65, 93.41, 96.29, 20.78, 40.92)),
    Row("msfe-odh", "+ MSFE + O-DH", "models/ablation/msfe-odh.yaml", ("MSFE", "O-DH"), Printed(96.35, 93.38, 96.27, 15.37, 29.32)),
    Row("msfe-adh", "+ MSFE + A-DH", "models/ablation/msfe-adh.yaml", ("MSFE", "A-DH"), Printed(97.43, 94.29, 96.99, 22.61, 42.56)),
    Row("msfe-cdh", "+ MSFE + C-DH", "models/ablation/msfe-cdh.yaml", ("MSFE", "C-DH"), Printed(97.41, 94.44, 96.96, 23.64, 44.42)),
    Row("ls-yolo", "LS-YOLO (+ MSFE + W-DH)", "models/ls-yolo.yaml", ("MSFE", "W-DH"), Printed(97.60, 94.56, 97.06, 22.60, 42.54)),
)
TABLE4 = (
    Row("faster-rcnn", "Faster R-CNN", "models/baselines/faster_rcnn.yaml", (), Printed(72.09, 93.33, 90.62, 136.7, 401.7, 23)),
    Row("ssd", "SSD", "models/baselines/ssd.yaml", (), Printed(91.07, 82.30, 89.71, 23.6, 273.2, 36)),
    Row("efficientdet-d0", "EfficientDet-D0", "models/baselines/efficientdet_d0.yaml", (), Printed(91.46, 78.49, 76.86, 3.8, 7.4, 26)),
    Row("yolov5s", "YOLOv5s", "models/yolov5s.yaml", (), Printed(96.57, 91.09, 94.88, 7.0, 15.8, 100)),
    Row("yolov7", "YOLOv7", "models/baselines/yolov7.yaml", (), Printed(93.92, 78.90, 78.64, 36.5, 103.2, 80)),
    Row("yolox-l", "YOLOX-L", "models/baselines/yolox_l.yaml", (), Printed(97.03, 93.20, 95.55, 54.1, 155.7, 38)),
    Row("ls-yolo", "LS-YOLO", "models/ls-yolo.yaml", (), Printed(97.60, 94.56, 97.06, 22.6, 42.5, 62)),
)


@dataclass(frozen=True)
class Study:
    """One of the paper's tables, as a campaign."""

    name: str
    title: str
    rows: tuple[Row, ...]
    reference: str  # the row that differences are counted from

    def row(self, name: str) -> Row:
        """The row of that name. Raises KeyError where there is none."""
        return {row.name: row for row in self.rows}[name]


STUDIES = {
    "ablation": Study("ablation", "Table III: ablation", TABLE3, "yolov5s"),
    "comparison": Study("comparison", "Table IV: comparison", TABLE4, "ls-yolo"),
}
EPOCHS, IMGSZ, BATCH, OPTIMIZER, HYP = 300, 640, 16, "SGD", "data/hyps/ls-yolo.yaml"
FOREIGN_HYP, FOREIGN_OPTIMIZER = "data/hyps/baselines.yaml", "AdamW"
