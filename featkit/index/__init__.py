"""The index folder: a catalogue and vectors, changed by one process and searched by many.

    catalogue.sqlite    the truth; one transaction of it commits each change
    vectors.f32         row `id` is the item's vector; append-only, read by position. After rows
                        of removed items were reclaimed it is vectors-<name>.f32
    model.onnx          the model that made the vectors
    writer.lock         held by the process that writes

index.py is the open folder; reading.py and writing.py are its two sides, and state.py is the
committed state that every read sees. catalogue.py has the transactions, connections.py the
connections, tables.py and table_writer.py the statements, vectors.py the vectors file. Filters are
read by where_text.py as the trees of where.py; where_sql.py makes SQL of them, and allowed.py keeps
what they match. searcher.py is what an index type implements, exact.py the only type so far,
index_types.py their list. compatibility.py decides which vectors may be compared.
"""

from __future__ import annotations

from featkit.index.compatibility import Proof
from featkit.index.index import Index
from featkit.index.records import AddReport, Hit, Item, NoSuchItem
from featkit.index.refining import Refinement
from featkit.index.state import IndexState
from featkit.index.where import FilterError

__all__ = [
    "AddReport",
    "FilterError",
    "Hit",
    "Index",
    "IndexState",
    "Item",
    "NoSuchItem",
    "Proof",
    "Refinement",
]
