"""One optimization step, its optimizer, its checkpoints, and the errors that end a run."""
