"""Single questions, asked from the command line."""
