"""Where images come from: folders, lists of paths, tar shards, Parquet files, Hugging Face data
sets.

All are numbered lists of undecoded bytes.
"""

from featkit.sources.base import IMAGE_SUFFIXES, Source, has_keys, keys_sha256
from featkit.sources.opening import concatenate, open_source, subset

__all__ = [
    "IMAGE_SUFFIXES",
    "Source",
    "concatenate",
    "has_keys",
    "keys_sha256",
    "open_source",
    "subset",
]
