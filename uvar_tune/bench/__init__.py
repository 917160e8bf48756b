"""Benchmarks: both sides of each claim about speed."""
