"""Sources of images: folders, lists of paths, tar shards, Parquet files, Hugging Face data
sets.

Each is a numbered list of undecoded images.
"""

from featkit.sources.base import IMAGE_SUFFIXES, Source, has_keys, keys_sha256
from featkit.sources.combined import concatenate, evenly, select, subset, thinned
from featkit.sources.opening import open_source

__all__ = [
    "IMAGE_SUFFIXES",
    "Source",
    "concatenate",
    "evenly",
    "has_keys",
    "keys_sha256",
    "open_source",
    "select",
    "subset",
    "thinned",
]
