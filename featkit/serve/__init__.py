"""The HTTP service: embedding and search for pictures sent as bytes. Needs the extra `serve` (or
`demo`)."""
