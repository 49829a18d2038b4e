"""What records say, as values and tables."""
