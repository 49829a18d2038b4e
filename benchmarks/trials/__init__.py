"""The life of one trial: needs torch."""
