#!/bin/bash
# What the documents call "not run", on a machine with GPUs: bash bench/gpu.sh [FOLDER]     (--print: shows the commands)
# Each part is a process of its own, and a failure ends no other. FOLDER (usual: gpu-rows) gets results.md, results.json
# and a log for each part. Status: 0 all parts passed, 1 a part failed, 3 no GPU here and nothing was run.
set -u
cd "$(dirname "$0")/.." || exit 1
print=false; [ "${1:-}" = --print ] && { print=true; shift; }
out=${1:-gpu-rows}
run="python train.py experiment=joint_tiny evaluate=[] engine.device=cuda"
names=(); commands=(); needs=()
part() { names+=("$1"); needs+=("$2"); commands+=("$3"); }  # name, GPUs that it needs, command

part nccl 2 "$run engine=zero2 launch.processes=2 run=$out/nccl"
part bf16 1 "$run host.dtype=bfloat16 run=$out/bf16"
part flex_attention 1 "$run host.attention=flex run=$out/flex_attention"
part zero3 2 "$run engine=zero3 launch.processes=2 run=$out/zero3"
part zero3_offload 2 "$run engine=zero3_offload launch.processes=2 run=$out/zero3_offload"
part zero2_offload 1 "$run engine=zero2_offload run=$out/zero2_offload"
part train_7b 1 "python -m bench train --shape 7b --dtype bfloat16 --out $out/train_7b"
part generate_7b 1 "python -m bench generate --shape 7b --dtype bfloat16 --out $out/generate_7b"

# Not yet here: the resume with engine.deterministic=true.
if $print; then
    printf '%s\n' "${commands[@]}"
    exit 0
fi
gpus=$(python -c 'import torch; print(torch.cuda.device_count())') || gpus=0
if [ "$gpus" -eq 0 ]; then
    for name in "${names[@]}"; do echo "$name: no GPU here"; done
    exit 3
fi
mkdir -p "$out"
status=0; rows=()
for number in "${!names[@]}"; do
    name=${names[$number]}; began=$SECONDS
    if [ "${needs[$number]}" -gt "$gpus" ]; then
        said="not run: needs ${needs[$number]} GPUs"
    elif bash -c "${commands[$number]}" > "$out/$name.log" 2>&1; then
        said=passed
    else
        said="failed: $name.log"; status=1
    fi
    echo "$name: $said"
    rows+=("$name" "$said" "$((SECONDS - began))" "${commands[$number]}")
done
python - "$out" "${rows[@]}" <<'END' || status=1
import json, pathlib, sys

out, cells = pathlib.Path(sys.argv[1]), sys.argv[2:]
rows = [dict(zip(("part", "result", "seconds", "command"), cells[at : at + 4])) for at in range(0, len(cells), 4)]
lines = ["| part | result | s | command |", "|---|---|---|---|"]
lines += [f"| {row['part']} | {row['result']} | {row['seconds']} | `{row['command']}` |" for row in rows]
lines += [f"\n{table.read_text()}" for table in sorted(out.glob("*/table.md"))]
(out / "results.md").write_text("\n".join(lines) + "\n")
(out / "results.json").write_text(json.dumps(rows, indent=1))
END
exit $status
