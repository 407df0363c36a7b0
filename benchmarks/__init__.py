"""The budgets of docs/benchmarks.md, measured as ratios within one run on one machine: `make bench`."""
