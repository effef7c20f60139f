"""Evaluate a run, or score a file of predictions without any model: the same as `mmadapter eval`.

python eval.py task=scienceqa run=runs/NAME
python eval.py task=scienceqa            (the newest finished run that does it, else the shipped adapter)
python eval.py task=scienceqa predictions=FILE task.problems=problems.json task.split=test output=DIR
python eval.py task=coco_caption predictions=FILE task.annotations=captions_val2014.json output=DIR
"""

from mmadapter.cli import evaluate

if __name__ == "__main__":
    evaluate()
