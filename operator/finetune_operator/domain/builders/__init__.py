"""The objects that the operator asks for: pure functions from a job to manifests, one file a kind."""
