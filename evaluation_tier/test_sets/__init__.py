"""Published test sets, as YAML, and their loader."""
