"""The index folder: a catalogue and vectors that live, and are searched exactly.

    catalogue.sqlite    the truth; a transaction of it is the commit point of every change    catalogue.py, tables.py
    vectors.f32         row `id` is the item's vector; append-only, read by position          vectors.py
    model.onnx          the model that made the vectors
    writer.lock         held by the one process that writes                                   featkit/lock.py, writers.py

`searcher.py` is the search over vectors that have no approximate index, which is all of them as
long as there is none.
"""

from __future__ import annotations

from featkit.index.index import AddReport, Hit, Index, NoSuchItem
from featkit.index.proofs import Proof
from featkit.index.tables import Item

__all__ = ["AddReport", "Hit", "Index", "Item", "NoSuchItem", "Proof"]
