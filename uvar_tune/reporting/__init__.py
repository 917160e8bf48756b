"""Reports of a study: the ranked table for the terminal, figures, and a self-contained HTML page."""

from uvar_tune.reporting.fields import describe_state
from uvar_tune.reporting.page import write_report
from uvar_tune.reporting.pooled import pooled_table, write_pooled
from uvar_tune.reporting.table import ranked_table

__all__ = ["describe_state", "pooled_table", "ranked_table", "write_pooled", "write_report"]
