"""From pictures to batches of crops, masks and colors."""
