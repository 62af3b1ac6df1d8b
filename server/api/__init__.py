"""HTTP: thin routes that turn requests into calls of the pipeline or the library, and results into responses."""
