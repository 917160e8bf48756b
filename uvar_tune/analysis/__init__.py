"""What a study's results mean: noise, confirmation, verdicts. Pure functions."""
