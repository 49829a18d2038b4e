"""The report's files: page, Markdown, CSV, BibTeX."""
