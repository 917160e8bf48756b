"""What is recorded: the metric registry, the write-ahead record, and MLflow as a view of it (imports nothing heavy)."""
