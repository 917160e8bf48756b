"""Files: atomic writes, locks, safe loading, hashes, disk space."""
