"""ScienceQA on a host with a chat template: trained, validated, asked and compared in it."""

import json
import shutil

from mmadapter.config import validate
from mmadapter.hosts.settings import TINY_HOST
from mmadapter.training.run import run
from tests.config.composing import run_conf
from tests.data.small_files import write_scienceqa

CHAT = "{% for one in messages %}<s>{{ one.role }}\n{{ one.content }}</s>{% endfor %}{% if add_generation_prompt %}"
CHAT += "<s>assistant\n{% endif %}"


def test_training_and_task_stand_in_the_hosts_chat_template(tmp_path):
    host = shutil.copytree(TINY_HOST, tmp_path / "host")
    file = host / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": CHAT}))
    conf = run_conf(
        *("experiment=scienceqa_text", f"host.path={host}", f"data.root={write_scienceqa(tmp_path / 'data')}"),
        *(
            "adapter.prompts.layers=2",
            "optimizer=tiny",
            "optimizer.steps=2",
            "optimizer.batch_size=2",
            "optimizer.micro_batch_size=2",
            "host.max_tokens=128",
        ),
        *(f"runs_root={tmp_path / 'runs'}", "training.tensorboard=false", "threads=1", "comparison=null"),
        *("data.sources.questions.template=auto", "tasks.scienceqa.generation.max_new_tokens=4"),
    )
    validate(conf)
    folder = run(conf)["folder"]
    rows = [json.loads(line) for line in (folder / "eval/scienceqa/predictions.jsonl").read_text().splitlines()]
    asked = "Question: Which is red?\nContext: N/A\nOptions: (A) dog (B) cat"
    assert rows[0]["prompt"] == f"<s>user\n{asked}</s><s>assistant\n"
    assert {row["likelihood_prediction"] for row in rows} <= {0, 1}
    card = json.loads((folder / "adapter" / "adapter.json").read_text())
    assert card["template"] == "auto", "generate asks in it, too"
