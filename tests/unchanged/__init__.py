"""Record what featkit computes, and compare two commits: see `python -m tests.unchanged --help`."""
