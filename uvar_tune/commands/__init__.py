"""One use case per module: what the command line and the Python API call."""
