"""`python -m featkit` is the featkit command."""

from featkit.cli.app import entry_point

entry_point()
