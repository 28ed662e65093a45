"""The three stages of a job: prepare, train (and evaluate), publish."""
