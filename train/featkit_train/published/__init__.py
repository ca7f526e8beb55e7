"""Backbones that others trained: their rows, their files, their names for things."""
