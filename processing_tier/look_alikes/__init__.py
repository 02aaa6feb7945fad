"""Near-duplicate images, equal reports, borders and marks of data sets: `tier-prepare --check`."""
