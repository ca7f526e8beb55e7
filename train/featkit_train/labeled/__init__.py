"""Methods with labels: generations, rounds, or one network with exits, each in one folder."""

from featkit_train.labeled.exits import internal
from featkit_train.labeled.generations import born_again
from featkit_train.labeled.rounds import self_training

__all__ = ["born_again", "internal", "self_training"]
