"""One optimization step, wherever it runs, and all it is spread, kept and stopped by."""
