"""Everything that is written about a campaign: tables, figures, page."""

from __future__ import annotations

from pathlib import Path

from reproduction.folder import missing_models, planned, read_campaign
from reproduction.record import load_records
from reproduction.report import write_report
from reproduction.results import gather
from reproduction.tables import all_tables, headline, text, write_tables
from utils.errors import UserError


def write_outputs(out: Path, page: bool = True) -> str:
    """Write OUT/table.md, .csv, .tex, .json and, with `page`, OUT/figures/ and OUT/index.html; the tables as text.

    Raises UserError where no run is done.
    """
    study, jobs = planned(out)
    records = load_records(out)
    if not records:
        raise UserError(f"{out}: no run is done yet; nothing can be told")
    results = gather(study, records, read_campaign(out)["no_pixel_rule"])
    lines, tables = headline(results, len(jobs), [row.title for row in missing_models(study)]), all_tables(results)
    write_tables(out, results, lines, tables)
    written = [f"{out / 'table.md'} (and .csv, .tex, .json)"]
    if page:
        written.append(str(write_report(out, results, lines, tables)))
    return f"{text(lines, tables)}\n\nwritten: {', '.join(written)}"
