"""What commands of runner.py do, one file each, and what they share."""
