"""`featkit train --list`: every method, and when to use it."""

from featkit.cli.console import print_json, print_table, stdout
from featkit.errors import InputError

# Method: what it needs, and when to use it.
WHEN = {
    "dino": (
        "images alone",
        "a few hundred images or more and no labels: the one to begin with",
    ),
    "ibot": (
        "images alone",
        (
            "thousands of images or more, when patches are to mean something too: parts,"
            " segmentation"
        ),
    ),
    "dinov2": (
        "images alone",
        "tens of thousands or more and a GPU: the best general features; many GPUs for the paper's",
    ),
    "dinov3": (
        "images alone",
        "millions and many GPUs, when dense features are to stay good over a long training",
    ),
    "distill": (
        "a larger teacher",
        "a published model knows your kind of images, and a small fast one is wanted",
    ),
    "adapt": (
        "a published model",
        "a published model nearly does, and you have thousands of images of a kind of your own",
    ),
    "born-again": (
        "labels",
        "all images have labels: a better network of the same size, and an ensemble",
    ),
    "self-training": (
        "some labels",
        "few images have labels and many of the same kinds have none",
    ),
    "internal": (
        "labels",
        "all images have labels, and how fast is to be chosen later: a model that may stop early",
    ),
}


def print_methods(*, list_: bool = False, json_: bool = False) -> None:
    """Train a self-distilled backbone on your own images; each method is a command.

    Example: featkit train --list

    Parameters
    ----------
    list_
        Print every method with what it needs and when to use it.
    json_
        Print the same as JSON.
    """
    if not (list_ or json_):
        raise InputError(
            "featkit train needs a method, such as `featkit train dino images/ --out run/`;"
            " --list shows them."
        )
    if json_:
        rows = [
            {"method": name, "needs": needs, "when": when} for name, (needs, when) in WHEN.items()
        ]
        print_json(rows)
        return
    print_table(
        "Methods", ("method", "needs", "when"), [(name, *words) for name, words in WHEN.items()]
    )
    stdout().print("Next: featkit train METHOD --help")
