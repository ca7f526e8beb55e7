"""`featkit report`: write the page of a training run."""

from pathlib import Path

from featkit.cli.console import stdout
from featkit.extras import need_extra


def report(run: Path, /) -> None:
    """Write report.html in a run folder: scores, curves, and what the network sees over time.

    A run writes this page itself when it ends. Use this command for a run that is still going or
    was killed. For a series of runs (born-again, self-training, internal), the page has a table of
    all of them and links to the page of each.

    Example: featkit report run/

    Parameters
    ----------
    run
        The run folder, which is the --out of `featkit train`.
    """
    need_extra("train", "yaml")
    from featkit_train.report import write_report

    stdout().print(str(write_report(run)))
