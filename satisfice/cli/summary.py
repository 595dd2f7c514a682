"""`satisfice summary`."""

from satisfice.cli.options import Json, ReportOptions, RunFolder
from satisfice.cli.tables import print_summary, run_of, summary_of


def summary(*, run: RunFolder, report: ReportOptions, as_json: Json = False) -> None:
    """Print the table of a run, finished or not.

    Example: satisfice summary runs/lab-lab-test
    """
    result = summary_of(run_of(run, report), report)
    if as_json:
        print(result.model_dump_json(indent=2))
    else:
        print_summary(result)
