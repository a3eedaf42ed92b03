"""Runs: the Trainer, the loops over phases and steps, and the run folder."""
