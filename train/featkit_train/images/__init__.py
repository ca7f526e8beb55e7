"""From images to batches of crops, masks and colors."""
