"""Train an adapter, evaluate it, write the report: the same as `mmadapter train`.

python train.py                                                   the embedded quick start: offline, on CPU
python train.py experiment=scienceqa host.path=... data.root=...  the real thing
python train.py dry_run=true ...                                  trainable table and memory estimate only
python train.py --cfg job                                         the composed settings
"""

from mmadapter.cli import train

if __name__ == "__main__":
    train()
