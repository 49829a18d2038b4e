"""Pictures drawn with integers only, so that every machine draws the same bytes; needs numpy and nothing else."""
