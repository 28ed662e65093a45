"""Where events come in: kopf's watches and the HTTP probes."""
