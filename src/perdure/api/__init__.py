"""HTTP: routes, schemas, the error table, renderings of events. The only package that knows the web framework."""
