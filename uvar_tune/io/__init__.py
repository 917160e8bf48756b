"""Files: atomic writes, locks, safe loading, hashes, manifests, disk space."""
