"""A real one-node Kubernetes for the quickstart, the tests and the benchmarks. Run it with ``python -m localcluster``."""
