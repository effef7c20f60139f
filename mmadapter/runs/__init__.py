"""The state of runs and the results of sweeps, from their files."""
