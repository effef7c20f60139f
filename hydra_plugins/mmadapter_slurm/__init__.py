"""Hydra finds launchers in packages of this name only; `cluster=slurm` chooses the one that is here."""
