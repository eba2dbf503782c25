"""How each kind of network lies in files and is built: see `pipelines.loading.parts.Recipe`."""
