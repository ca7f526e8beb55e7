"""Published backbones: their rows, their files, their names for weights."""
