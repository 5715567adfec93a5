"""The paper's tables from a dataset, and how much of a difference in them is noise.

    python reproduce.py ablation --data DATA.yaml [--out DIR]     Table III: train, test, judge; start again to go on
    python reproduce.py comparison --data DATA.yaml [--out DIR]   Table IV, for the models that exist
    python reproduce.py plan --data DATA.yaml | --out DIR         what such a campaign costs here, before it starts
    python reproduce.py status --out DIR                          which runs are done, running, missing, failed
    python reproduce.py tables --out DIR                          tables, figures and page anew from the runs that are done
"""

from __future__ import annotations

import sys
from pathlib import Path

from reproduction.paper import STUDIES
from reproduction.settings import ComparisonOptions, Options, PlanOptions, StatusOptions, TablesOptions
from utils.config import parse
from utils.errors import UserError, run


def campaign(kind: str, options: Options) -> int:
    """Do the runs that are not done, then write the tables; 1 where a run failed."""
    from reproduction.campaign import Stop, open_campaign, run_campaign
    from reproduction.folder import missing_models, planned, summary

    out = Path(options.out)
    with Stop(options.budget) as stop:
        opened = open_campaign(STUDIES[kind], options)
        for row in missing_models(opened.study):
            print(f"{row.title}: cannot be built yet ({row.cfg} is not there); left out")
        run_campaign(opened, stop)
    _, jobs = planned(out)
    counts, words = summary(out, jobs)
    print(f"\n{words}")
    if stop.late:
        print(f"the {options.budget:g} minutes are over; the same command goes on")
    if counts["running"]:
        print("the process that finishes last writes the tables")
    elif counts["done"]:
        write(out, not (options.no_page or stop.late))
    return 1 if counts["failed"] else 0


def plan(options: PlanOptions) -> int:
    """Print what the campaign's remaining runs cost on this device."""
    from reproduction.plan import plan_campaign

    print(plan_campaign(options))
    return 0


def status(options: StatusOptions) -> int:
    """Print the state of every run of a folder."""
    from reproduction.folder import planned, summary

    out = Path(options.out)
    _, jobs = planned(out)
    print(summary(out, jobs)[1])
    return 0


def tables(options: TablesOptions) -> int:
    """Write tables, figures and page of the runs that are done."""
    write(Path(options.out), not options.no_page)
    return 0


def write(out: Path, page: bool) -> None:
    """Print the tables and write all files that speak of the campaign."""
    from reproduction.outputs import write_outputs

    print(write_outputs(out, page))


def main() -> int:
    """Entry of `python reproduce.py`."""
    command, rest = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("--help", [])
    prog = f"reproduce.py {command}"
    if command == "ablation":
        return campaign(command, parse(Options, rest, prog))
    if command == "comparison":
        return campaign(command, parse(ComparisonOptions, rest, prog))
    if command == "plan":
        return plan(parse(PlanOptions, rest, prog))
    if command == "status":
        return status(parse(StatusOptions, rest, prog))
    if command == "tables":
        return tables(parse(TablesOptions, rest, prog))
    print(__doc__)
    if command not in ("-h", "--help"):
        raise UserError(f"{command!r}: ablation, comparison, plan, status or tables was expected")
    return 0


if __name__ == "__main__":
    run(main)
