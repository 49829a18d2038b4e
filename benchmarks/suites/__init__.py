"""What is compared: suites, their rows, and trials' specifications. Free of torch."""
