"""The embeddings folder: plan.json, the model, and Parquet shards with one row per item, in source
order.

    emb/plan.json              which source, model and runtime, and how many shards; written first
    emb/model.onnx             the model, so that an index built from the folder can embed queries
    emb/shards/00000.parquet   key, width, height, thumbnail, embedding, error, metadata columns
    emb/stamps/00000.parquet   size, mtime_ns and digest of each item's file when it was embedded

A shard is written whole or not at all, and has as many rows as items: an image that could not be
read is a row with its `error`. All shards have the same columns, which the plan lists. Stamps are
kept out of the shards, whose bytes depend on the images alone. Stamps never claim more than the
shard holds: those of a new shard are written before it, those of an updated shard after it.
"""

from featkit.embeddings.columns import COLUMNS
from featkit.embeddings.folder import SHOWN_FAILURES, Embeddings, nothing_embedded
from featkit.embeddings.plan import MODEL_FILE, PLAN_FILE, FolderPlan
from featkit.embeddings.shards import ShardRow, vectors_of

__all__ = [
    "COLUMNS",
    "MODEL_FILE",
    "PLAN_FILE",
    "SHOWN_FAILURES",
    "Embeddings",
    "FolderPlan",
    "ShardRow",
    "nothing_embedded",
    "vectors_of",
]
