"""How a step runs: optimisers, precision, graphs, checkpoints, records and interruption; knows no recipe."""
