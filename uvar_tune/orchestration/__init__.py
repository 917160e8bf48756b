"""Ray: resources, workers, trials and the study that runs them (the only importer of ray)."""
