"""`featkit train`: a self-distilled backbone from your own pictures, one command a method."""

from cyclopts import App

from featkit.cli.train.methods import adapt, dino, dinov2, dinov3, distill, ibot

__all__ = ["adapt", "app", "dino", "dinov2", "dinov3", "distill", "ibot"]

app = App(name="train", help="Train a self-distilled backbone on your own pictures.")
for command in (dino, ibot, dinov2, dinov3, distill, adapt):
    app.command(command)
