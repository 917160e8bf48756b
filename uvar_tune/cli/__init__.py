"""Command line: the only package that prints, sets exit codes and handles signals."""
