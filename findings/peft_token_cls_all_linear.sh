#!/usr/bin/env bash
# peft 0.21.2, transformers 5.24.0: "all-linear" does not work for token classification.
# Behaviour: get_peft_model with LoraConfig(task_type="TOKEN_CLS", target_modules="all-linear") on a
# BertForTokenClassification raises TypeError, "modules_to_save cannot be applied to modules of type ...Linear". With
# SEQ_CLS, on a BertForSequenceClassification whose head has the same name, the head is left to modules_to_save.
# Surprising: both task types train the head whole by themselves; only one keeps "all-linear" off it.
# Lost: the documented short form for all linear layers, for this task; target_modules has to name them.
set -euo pipefail
venv="$(mktemp -d)"
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/pip" install -q torch==2.13.0 peft==0.21.2 transformers==5.24.0
"$venv/bin/python" - <<'EOF'
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification, BertForTokenClassification

config = BertConfig(
    vocab_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
)
seen = {}
for task, kind in (("SEQ_CLS", BertForSequenceClassification), ("TOKEN_CLS", BertForTokenClassification)):
    try:
        get_peft_model(kind(config), LoraConfig(task_type=task, target_modules="all-linear"))
        seen[task] = "works"
    except TypeError as error:
        seen[task] = str(error)
print(seen)
assert seen["SEQ_CLS"] == "works"
assert seen["TOKEN_CLS"].startswith("modules_to_save cannot be applied to modules of type")
EOF
