"""Parts of a training step: optimisers, precision, graphs, checkpoints, records, interruption; none knows a recipe."""
