"""The records that every reader yields: `schema` describes them, `from_table` makes them."""
