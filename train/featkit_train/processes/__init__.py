"""The processes of one run: their device, how they exchange tensors, and how they stop."""
