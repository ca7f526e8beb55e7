"""Backbones, heads, and the parts of training that only networks need."""
