"""The index folder: a catalogue that is the truth, vectors beside it, and search over both."""

from featkit.index.catalogue import Item
from featkit.index.index import AddReport, Hit, Index

__all__ = ["AddReport", "Hit", "Index", "Item"]
