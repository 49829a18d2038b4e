"""What trials leave behind, and where. Free of torch."""
