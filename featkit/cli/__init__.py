"""The featkit command: one file per command, loaded only when it runs."""
