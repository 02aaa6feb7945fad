"""The records that every reader yields: `schema` says what they hold, `from_table` makes them."""
