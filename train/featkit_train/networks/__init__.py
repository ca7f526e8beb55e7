"""What learns: one Vision Transformer, others borrowed, heads, and what is left out or averaged
while they learn."""
