"""`featkit train`: a self-distilled backbone from your own images, one command per method."""

from cyclopts import App

from featkit.cli.train.labeled import born_again, internal, self_training
from featkit.cli.train.listing import print_methods
from featkit.cli.train.methods import adapt, command_for, dino, dinov2, dinov3, distill, ibot
from featkit_train.method_list import list_methods

__all__ = [
    "adapt",
    "app",
    "born_again",
    "dino",
    "dinov2",
    "dinov3",
    "distill",
    "ibot",
    "internal",
    "self_training",
]

app = App(
    name="train",
    help="Train a self-distilled backbone on your own images; --list shows which method to use"
    " when.",
)
for command in (dino, ibot, dinov2, dinov3, distill, adapt, born_again, self_training, internal):
    app.command(command)
for card in list_methods().values():
    if card.name not in app:
        app.command(command_for(card), name=card.name)
app.default(print_methods)
