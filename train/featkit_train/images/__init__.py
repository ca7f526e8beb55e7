"""Crops, masks and colors of training images, and the batches made of them."""
