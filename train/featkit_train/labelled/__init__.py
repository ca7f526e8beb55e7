"""Trainings with labels that follow each other in one folder: generations, rounds, or one network
with several exits."""

from featkit_train.labelled.exits import internal
from featkit_train.labelled.generations import born_again
from featkit_train.labelled.rounds import self_training

__all__ = ["born_again", "internal", "self_training"]
