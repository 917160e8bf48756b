"""Everything that talks to Ray: cluster, capacity, workers, trials under Tune."""
