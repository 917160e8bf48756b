"""Configuration schema, search space and loading."""
