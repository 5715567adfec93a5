"""Publish trained weights: python -m models.publish best.pt --out landslides.safetensors

The file holds the averaged weights, the model's description, the class names and the image size, and can hold nothing that runs. val.py,
detect.py and train.py take it as --weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from utils.config import option, parse
from utils.errors import run


@dataclass(frozen=True)
class Options:
    """Write the weights of a checkpoint as .safetensors."""

    source: str = option("", "a checkpoint: ours, YOLOv5's or the LS-YOLO authors'", positional=True, metavar="IN.pt")
    out: str = option("", "the file to write", metavar="OUT.safetensors")


# --help and wrong flags are answered before the seconds that importing torch takes.
OPTIONS = parse(Options, prog="python -m models.publish") if __name__ == "__main__" else Options()

from pathlib import Path  # noqa: E402

from models.weights import load_weights  # noqa: E402
from utils.errors import UserError  # noqa: E402
from utils.published import SUFFIX, write_published  # noqa: E402


def publish(source: Path, out: Path) -> None:
    """Write `out` from the checkpoint `source`. Raises UserError."""
    if out.suffix != SUFFIX or out.resolve() == source.resolve():
        raise UserError(f"--out {str(out)!r}: another file than the source, ending in {SUFFIX}, was expected")
    if not out.parent.is_dir():
        raise UserError(f"{out.parent}: no such folder")
    loaded = load_weights(source)
    model = loaded.model
    write_published(out, {"model": model.config.to_dict(), "names": list(loaded.names), "imgsz": loaded.imgsz, "ema": model.state_dict()})
    print(f"{source} -> {out}: {sum(p.numel() for p in model.parameters()):,} parameters, {len(loaded.names)} classes, {loaded.imgsz} px")


def main() -> None:
    publish(Path(OPTIONS.source), Path(OPTIONS.out))


if __name__ == "__main__":
    run(main)
