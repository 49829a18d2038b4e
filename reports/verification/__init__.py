"""Measured numbers against published and shipped ones."""
