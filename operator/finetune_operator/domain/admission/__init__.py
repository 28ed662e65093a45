"""Whether a job may run: acceptance, plan, budget and workspace."""
