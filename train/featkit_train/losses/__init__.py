"""The losses as pure functions, and the little state that some of them keep."""

from featkit_train.losses.dino import Center, dino_loss, sharpen
from featkit_train.losses.gram import gram_loss
from featkit_train.losses.ibot import ibot_loss
from featkit_train.losses.koleo import koleo_loss
from featkit_train.losses.sinkhorn import sinkhorn_knopp

__all__ = ["Center", "dino_loss", "gram_loss", "ibot_loss", "koleo_loss", "sharpen", "sinkhorn_knopp"]
