"""Run the featkit command as `python -m featkit`."""

from featkit.cli.app import entry_point

entry_point()
