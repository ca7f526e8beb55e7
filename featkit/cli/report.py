"""`featkit report`: a training run, or several that belong together, as one page."""

from pathlib import Path

from featkit.cli.console import stdout
from featkit.extras import need_extra


def report(run: Path, /) -> None:
    """Write the page of a training run anew, from what its folder holds: scores, curves, and what
    the network sees over time.

    A run writes it by itself when it ends. This makes it of a run that still goes on, or that was
    killed. Of a course of trainings (born-again, self-training, internal) it is the table of them
    all, with the page of each beside.

    Example: featkit report run/

    Parameters
    ----------
    run
        The folder of the run, --out of a `featkit train`; the page is report.html in it.
    """
    need_extra("train", "yaml")
    from featkit_train.report import write_report

    stdout().print(str(write_report(run)))
