"""Everything that talks to Optuna: studies, storages, samplers, pruning, replicates."""
