"""What makes it a benchmark: wiring, checkpoints, mini data, measuring, runs, records."""
