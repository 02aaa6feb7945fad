"""Files and texts that an evaluation writes."""
