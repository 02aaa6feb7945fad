"""What is measured beside the scores."""
