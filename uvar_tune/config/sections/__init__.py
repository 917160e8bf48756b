"""One section of the configuration per file, named after its key in YAML; `config.schema` puts them together."""
