"""The study: its space, the search, what it found and what of it is exported."""
