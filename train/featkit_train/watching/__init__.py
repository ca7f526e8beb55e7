"""What is measured and said of a run while it goes."""
