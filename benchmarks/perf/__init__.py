"""Measurements of ourselves: printed, never asserted in tests."""
