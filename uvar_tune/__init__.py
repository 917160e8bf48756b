"""uvar_tune: distributed hyperparameter studies for visual autoregressive models trained with uncertainty preservation."""

__version__ = "0.1.0"
