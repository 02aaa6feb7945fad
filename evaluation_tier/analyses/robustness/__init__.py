"""Results under other wordings, sides and images."""
