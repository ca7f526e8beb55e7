"""The featkit command: one file a command, each loaded only when it runs."""
