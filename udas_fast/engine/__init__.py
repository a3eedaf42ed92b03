"""Parts of a training step: optimisers, precision, graphs, checkpoints, records, interruption; no recipe is known here."""
