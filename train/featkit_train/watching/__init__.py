"""Measurements, diagnoses and snapshots of a run while it trains."""
