"""Hydra finds sweepers in packages of this name only; conf/train.yaml chooses the one that is here."""
