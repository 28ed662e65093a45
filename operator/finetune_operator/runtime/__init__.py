"""Everything that touches the API server: client, cache, queue, reconciler, poller, recorder."""
