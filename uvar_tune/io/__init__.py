"""Files: atomic writes, locks, safe loading, hashes, manifests, disk space. Nothing else writes, locks or hashes a file."""
