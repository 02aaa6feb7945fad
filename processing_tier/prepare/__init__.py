"""`tier-prepare`: an archive to Parquet shards with embedded images. `run` is where it begins."""
