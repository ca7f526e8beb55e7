"""Training of self-distilled backbones."""
