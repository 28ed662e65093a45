"""Why pods wait and why attempts failed, in sentences with a remedy."""
