"""Results -> tables, as Markdown, CSV, LaTeX, JSON and text; each says in its headline whether the campaign was a shortened one."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from reproduction.page import Table
from reproduction.paper import MARKS, Printed, Row
from reproduction.record import write_whole
from reproduction.results import COMPARED, SHARES, Mean, Result, Results
from reproduction.statistics import LEVEL, RESAMPLES, Interval

YES, NOISE, SEEDS, NONE = "✓", "~", "s", "–"
SPLIT_WORDS = {"main": "", "paper": ", paper split"}
DIFFERENCE_NOTE = (
    f"In brackets the {LEVEL:.0%} interval of the difference: paired bootstrap over the test images, {RESAMPLES} samples, "
    f"averaged over seeds; {NOISE}: it holds 0, so that other test images may undo the difference; {SEEDS}: the difference is below twice its "
    "standard error over seeds, so that other seeds may. ±: standard deviation over seeds."
)
BLIND_NOTE = "No-pixel rule: guesses a box from the image's width and height alone; what a model reaches below it need not come from looking."


def headline(results: Results, planned: int, absent: Sequence[str] = ()) -> list[str]:
    """What must be known before any figure is read; the first line says whether the campaign is shortened.

    planned: how many runs the campaign has. absent: titles of the models of the paper's table that cannot be built yet.
    """
    records = results.records
    first = records[0].settings
    cuts = sorted({"; ".join(one.settings["shortened"]) for one in records})
    lines = [f"SHORTENED campaign, not the paper's settings: {' | '.join(cuts)}" if any(cuts) else "The paper's settings."]
    if len(records) < planned:
        lines.append(f"INCOMPLETE: {len(records)} of {planned} runs are done.")
    if len(cuts) > 1:
        lines.append("MIXED: these runs were made under different settings.")
    if absent:
        lines.append(f"Not built yet: {', '.join(absent)}.")
    for split in results.results:
        own = [one for one in records if one.split == split]
        tested = own[0].settings["tested_on"]
        words = f"{'--paper-data' if split == 'paper' else '--data'} {Path(first['paper_data' if split == 'paper' else 'data'] or '').name}"
        what = f"{len(own[0].images)} images of its {tested} split, {len(set(own[0].clusters))} of them independent of each other"
        lines.append(f"{words}: tested on {what}.")
        if tested == "val":
            lines.append("It has no test split: val chose the best epoch of each run and measured it too, which flatters all rows alike.")
    foreign = [row.title for row in results.study.rows if row.foreign and row.name in {one.row for one in records}]
    if foreign:
        lines.append(f"{', '.join(foreign)}: {first['baseline_optimizer']} and hyper-parameters of their own (--baseline-hyp).")
    devices = sorted({str(one.settings["device"]) for one in records})
    seeds = sorted({one.seed for one in records})
    lines.append(f"Seeds {', '.join(map(str, seeds))}; {first['epochs']} epochs at {first['img']} px on {'; '.join(devices)}.")
    return lines


def all_tables(results: Results) -> list[Table]:
    """Every table of a campaign, the main ones first."""
    tables: list[Table] = []
    for split, rows in results.results.items():
        blind = results.no_pixel_rule.get(split, {})
        tables += [paper_table(results, split, rows, blind), coco_table(results, split, rows, blind)]
    first = next(iter(results.results.values()), ())
    tables.append(cost_table(first))
    if results.leak:
        tables.append(leak_table(results))
    for split, rows in results.results.items():
        for kind, title in (("source", "by source"), ("size", "by COCO size of the box"), ("share", "by share of the image that the box covers")):
            tables.append(part_table(rows, kind, f"Results {title}{SPLIT_WORDS.get(split, '')}"))
    return tables


def paper_table(results: Results, split: str, rows: Sequence[Result], blind: Mapping[str, float]) -> Table:
    """Table III or IV under the `paper` protocol beside the paper's own figures."""
    study, marks = results.study, MARKS if results.study.name == "ablation" else ()
    reference = study.row(study.reference)
    columns = ["Model", *marks, "P %", "R %", "AP %", f"AP to {reference.title}", "AP to row above", "paper P", "paper R", "paper AP", "paper AP difference"]
    body = [_blind_row(len(marks), [NONE, NONE, _number(blind["AP"])], 6)] if blind else []
    for result in rows:
        own: Printed = result.row.printed
        printed = [f"{own.precision:.2f}", f"{own.recall:.2f}", f"{own.ap:.2f}"]
        away = NONE if result.row.name == reference.name else f"{own.ap - reference.printed.ap:+.2f}"
        body.append([*_named(result.row, marks), *(_mean(result.values[key]) for key in SHARES[:3]), *_both(result, "AP"), *printed, away])
    title = f"{study.title}, protocol `paper`{SPLIT_WORDS.get(split, '')}"
    note = f"Confidence >= 0.5, NMS IoU 0.5, P-R curve cut at 0.5 and closed as the paper did. {DIFFERENCE_NOTE} {BLIND_NOTE if blind else ''}"
    return Table(title, columns, body, note.strip())


def coco_table(results: Results, split: str, rows: Sequence[Result], blind: Mapping[str, float]) -> Table:
    """The same models under the `coco` protocol."""
    study, marks = results.study, MARKS if results.study.name == "ablation" else ()
    columns = ["Model", *marks]
    for key in COMPARED[1:]:
        columns += [f"{key} %", f"{key} to {study.row(study.reference).title}", f"{key} to row above"]
    body = [_blind_row(len(marks), [_number(blind["AP50"]), NONE, NONE, _number(blind["AP50:95"]), NONE, NONE], 0)] if blind else []
    for result in rows:
        cells = [cell for key in COMPARED[1:] for cell in (_mean(result.values[key]), *_both(result, key))]
        body.append([*_named(result.row, marks), *cells])
    title = f"{study.title}, protocol `coco`{SPLIT_WORDS.get(split, '')}"
    note = f"Confidence from 0.001, NMS IoU 0.6, at most 100 detections per image; the paper prints no such figures. {DIFFERENCE_NOTE}"
    return Table(title, columns, body, note)


def cost_table(rows: Sequence[Result]) -> Table:
    """Params, GFLOPs and speed of each model."""
    columns = ["Model", "Params M", "paper Params M", "GFLOPs", "paper GFLOPs", "FPS", "paper FPS", "seconds per epoch", "seeds"]
    body = []
    for result in rows:
        own = result.row.printed
        body.append([
            *(result.row.title, f"{result.params / 1e6:.2f}", f"{own.params:.2f}", f"{result.gflops:.2f}", f"{own.gflops:.2f}", f"{result.fps:.1f}"),
            *(NONE if own.fps is None else f"{own.fps:.0f}", NONE if math.isnan(result.seconds_per_epoch) else f"{result.seconds_per_epoch:.1f}"),
            " ".join(map(str, result.seeds)),
        ])  # fmt: skip
    note = "Conv and BatchNorm fused; GFLOPs of one square image of the size tested at (the paper's: 640 px); FPS: batch 1, model and NMS, on this device."
    return Table("Size and speed", columns, body, note)


def leak_table(results: Results) -> Table:
    """The same rows on the paper's split and on --data: what the leak of augmented twins is worth."""
    titles = {result.row.name: result for result in results.results["main"]}
    others = {result.row.name: result for result in results.results["paper"]}
    columns = ["Model"]
    for key in COMPARED:
        columns += [f"{key} % on --data", f"{key} % on --paper-data", f"{key}: price of the leak"]
    body = []
    for name, gain in results.leak.items():
        own, other = titles[name].values, others[name].values
        body.append([titles[name].row.title, *(cell for key in COMPARED for cell in (_mean(own[key]), _mean(other[key]), _difference(gain[key])))])
    note = f"Under the paper's split, versions of the training images are among the test images. Intervals ({LEVEL:.0%}) are not paired: the images differ."
    return Table("The price of the leak, in AP points", columns, body, note)


def part_table(rows: Sequence[Result], kind: str, title: str) -> Table:
    """AP and AP50:95 of the parts of one kind that hold objects."""
    parts = [part for part in rows[0].parts if part.startswith(f"{kind}:") and rows[0].parts[part]["objects"].value] if rows else []
    names = [f"{part.partition(':')[2]} ({rows[0].parts[part]['objects'].value:.0f} objects)" for part in parts]
    columns = ["Model", *(f"{name}: {key} %" for name in names for key in ("AP", "AP50:95"))]
    body = [[result.row.title, *(_mean(result.parts[part][key]) for part in parts for key in ("AP", "AP50:95"))] for result in rows]
    rule = "" if kind == "source" else " By COCO's rule: what hits an object outside a range counts neither as right nor as wrong."
    return Table(title, columns, body, f"AP: protocol `paper`; AP50:95: `coco`.{rule}")


def _named(row: Row, marks: Sequence[str]) -> list[str]:
    return [row.title, *(YES if mark in row.marks else "" for mark in marks)]


def _blind_row(marks: int, cells: Sequence[str], more: int) -> list[str]:
    return ["no-pixel rule", *[""] * marks, *cells, *[NONE] * more]


def _number(value: float) -> str:
    return f"{value:.2f}"


def _mean(value: Mean) -> str:
    return f"{value.value:.2f}" + ("" if value.spread is None else f" ± {value.spread:.2f}")


def _difference(found: Interval | None) -> str:
    if found is None:
        return NONE
    marks = [mark for mark, given in ((NOISE, found.holds_zero), (SEEDS, found.within_seeds)) if given]
    return " ".join([f"{found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}]", *marks])


def _both(result: Result, key: str) -> list[str]:
    return [_difference(result.to_reference.get(key)), _difference(result.to_above.get(key))]


# -------------------------------------------------------------------------------------------------------- files


def write_tables(out: Path, results: Results, lines: Sequence[str], tables: Sequence[Table]) -> None:
    """OUT/table.md, .tex, .csv (one row per model, plain numbers) and .json (everything)."""
    for suffix, text in (("md", markdown(lines, tables)), ("tex", latex(lines, tables)), ("csv", numbers(results, lines)), ("json", as_json(results, lines))):
        write_whole(out / f"table.{suffix}", text.encode())


def markdown(lines: Sequence[str], tables: Sequence[Table]) -> str:
    """Headline and tables."""
    parts = ["\n".join(f"{'**' if not i else ''}{line}{'**' if not i else ''}  " for i, line in enumerate(lines))]
    for table in tables:
        rows = [table.columns, ["---"] * len(table.columns), *table.rows]
        body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
        parts.append(f"## {table.title}\n\n{lines[0]}\n\n{body}\n\n{table.note}")
    return "\n\n".join(parts) + "\n"


def text(lines: Sequence[str], tables: Sequence[Table]) -> str:
    """For the terminal."""
    parts = ["\n".join(lines)]
    for table in tables:
        rows = [table.columns, *table.rows]
        widths = [max(len(row[i]) for row in rows) for i in range(len(table.columns))]
        body = ["  ".join(cell.ljust(width) if not i else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True))) for row in rows]
        parts.append("\n".join([table.title, *(line.rstrip() for line in body), table.note]))
    return "\n\n".join(parts)


_LATEX = {"\\": r"\textbackslash{}", **{mark: f"\\{mark}" for mark in "&%$#_{}"}, "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {YES: r"\checkmark{}", NONE: "--", "±": r"$\pm$", "<": r"$<$", ">": r"$>$", "`": "'"}


def latex(lines: Sequence[str], tables: Sequence[Table]) -> str:
    """One table environment each; needs the packages amssymb (check marks) and graphicx (to fit the line)."""
    parts = ["% " + "\n% ".join(lines) + "\n% \\usepackage{amssymb,graphicx}"]
    for table in tables:
        head = " & ".join(map(_escaped, table.columns)) + r" \\"
        body = "\n".join(" & ".join(map(_escaped, row)) + r" \\" for row in table.rows)
        tabular = f"\\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}\n\\hline\n{head}\n\\hline\n{body}\n\\hline\n\\end{{tabular}}"
        caption = _escaped(f"{table.title}. {lines[0]} {table.note}")
        parts.append(f"\\begin{{table}}\n\\centering\n\\caption{{{caption}}}\n\\resizebox{{\\linewidth}}{{!}}{{%\n{tabular}}}\n\\end{{table}}")
    return "\n\n".join(parts) + "\n"


def _escaped(words: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in words)


def numbers(results: Results, lines: Sequence[str]) -> str:
    """CSV: one row per split and model, every figure in a column of its own; the last column says what kind of campaign it was."""
    flat = []
    for split, rows in results.results.items():
        if split in results.no_pixel_rule:
            flat.append({"split": split, "model": "no-pixel rule", **results.no_pixel_rule[split]})
        for result in rows:
            row: dict[str, object] = {"split": split, "model": result.row.name, "seeds": " ".join(map(str, result.seeds))}
            for key, found in result.values.items():
                row |= {key: round(found.value, 4), f"{key}_std": "" if found.spread is None else round(found.spread, 4)}
            for word, differences in (("reference", result.to_reference), ("above", result.to_above)):
                for key, one in differences.items():
                    row |= {f"{key}_to_{word}": round(one.value, 4), f"{key}_to_{word}_low": round(one.low, 4), f"{key}_to_{word}_high": round(one.high, 4)}
            row |= {"params": result.params, "gflops": round(result.gflops, 3), "fps": round(result.fps, 2)}
            row |= {"paper_P": result.row.printed.precision, "paper_R": result.row.printed.recall, "paper_AP": result.row.printed.ap}
            flat.append(row)
    names = list(dict.fromkeys(name for row in sorted(flat, key=len, reverse=True) for name in row))
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, [*names, "campaign"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "campaign": lines[0]} for row in flat)
    return file.getvalue()


def as_json(results: Results, lines: Sequence[str]) -> str:
    """Everything as plain values, and the runs that each figure comes from."""
    content: dict[str, Any] = {"campaign": list(lines), "study": results.study.name, "resamples": RESAMPLES, "level": LEVEL}
    content["no_pixel_rule"] = results.no_pixel_rule
    content["splits"] = {split: [_plain_result(result) for result in rows] for split, rows in results.results.items()}
    content["leak"] = {name: {key: asdict(one) for key, one in gain.items()} for name, gain in results.leak.items()}
    content["runs"] = [
        {"run": one.name, "row": one.row, "split": one.split, "seed": one.seed, "report": one.report, "settings": one.settings} for one in results.records
    ]
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _plain_result(result: Result) -> dict[str, Any]:
    plain = asdict(result)
    return plain | {"seconds_per_epoch": None if math.isnan(result.seconds_per_epoch) else result.seconds_per_epoch}
