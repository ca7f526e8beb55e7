"""`featkit evaluate`: measure a model on your own images, with one file for each measurement."""

from cyclopts import App

from featkit.cli.evaluate.all import all_
from featkit.cli.evaluate.copies import copies
from featkit.cli.evaluate.knn import knn
from featkit.cli.evaluate.linear import linear
from featkit.cli.evaluate.retrieval import retrieval

__all__ = ["all_", "app", "copies", "knn", "linear", "retrieval"]

app = App(name="evaluate", help="Measure a model on your own images.")
app.command(all_, name="all")
for command in (copies, knn, linear, retrieval):
    app.command(command)
