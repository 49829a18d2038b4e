"""Pages of docs/results, made from the shipped records."""
