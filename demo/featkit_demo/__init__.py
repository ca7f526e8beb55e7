"""The search page over an index, and the sample gallery it opens with."""
