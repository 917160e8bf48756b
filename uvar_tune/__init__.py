"""uvar_tune: distributed hyperparameter studies for visual autoregressive models trained with uncertainty preservation."""

import logging

logging.getLogger(__name__).addHandler(logging.NullHandler())

__version__ = "0.1.0"
