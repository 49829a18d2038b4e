"""Statistics and how numbers are written; knows no records."""
