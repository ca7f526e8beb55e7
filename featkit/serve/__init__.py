"""The HTTP service: embedding and search for images sent as bytes. Needs the extra `serve` (or
`demo`)."""
