#!/usr/bin/env bash
# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
#
# Trains without labels, on all recordings, half of them and a quarter; then with few labels, from the weights of all
# recordings and from nothing; and verifies held-out people by each:
#
#     benchmarks/label_free/run.sh DATA OUT HELDOUT...
#
# DATA: the folder that prepare.py wrote, with --label_shares 5 20 100.
# OUT: folder for models and results. What is there already is not made again; a training that was cut off goes on.
# HELDOUT: folders with speech in heldout/*.parquet and noise in noise/heldout*.parquet, by whose names results are known.
#
# STEPS and LABEL_STEPS are the steps of the trainings, SHARES those of the labels, PEERS what else is verified.
# PRETRAIN, FINETUNE and VERIFY are more options of the commands. `tables.py OUT` prints the tables and draws the picture.
set -euo pipefail
examples=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../examples" && pwd)
recipes=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
data=$1 out=$2
shift 2
: "${STEPS:=2000}" "${LABEL_STEPS:=300}" "${SHARES:=5 20 100}" "${PEERS=mfcc resemblyzer campplus}"
: "${PRETRAIN:=}" "${FINETUNE:=}" "${VERIFY:=}"
mkdir -p "$out"

# shellcheck disable=SC2086  # PRETRAIN and FINETUNE are several words
pretrain() { # NAME RECORDINGS OPTION...
    [[ -e $out/$1/model.safetensors ]] || accelerate launch --cpu --num_processes 1 "$examples/pretrain.py" \
        --config "$recipes/utterance.yaml" --train_data "$2" --noise_data "$data/noise/*.parquet" \
        --max_train_steps "$STEPS" --resume_from_checkpoint latest --output_dir "$out/$1" $PRETRAIN "${@:3}"
}

# shellcheck disable=SC2086
finetune() { # MODEL SHARE
    local name
    name=labels-$2-from-$(basename "$1")
    [[ -e $out/$name/model.safetensors ]] || accelerate launch --cpu --num_processes 1 "$examples/finetune_mixtures.py" \
        --config "$recipes/labels.yaml" --model "$1" --train_data "$data/labels-$2/*.parquet" \
        --eval_data "$data/dev/*.parquet" --noise_data "$data/noise/*.parquet" \
        --max_steps "$LABEL_STEPS" --output_dir "$out/$name" $FINETUNE
}

# shellcheck disable=SC2086
verify() { # MODEL...
    local heldout model
    for heldout in "${heldouts[@]}"; do
        for model in "$@"; do
            [[ -e $out/results/$(basename "$heldout")/$(basename "$model")/results.json ]] ||
                python "$examples/evaluate_verification.py" "$model" --data "$heldout/heldout/*.parquet" \
                    --noise_data "$heldout/noise/heldout*.parquet" --source_column_name source \
                    --conditions clean noise0 mix0 mix0_mix0 --cache_dir "$out/cache" \
                    --output_dir "$out/results/$(basename "$heldout")/$(basename "$model")" $VERIFY
        done
    done
}

heldouts=("$@")
# Batch norm has to see speech, also where nothing is learnt.
pretrain untrained "$data/recordings/*.parquet" --max_train_steps 20 --learning_rate 0
pretrain untrained_v1 "$data/recordings/*.parquet" --max_train_steps 1 --learning_rate 0 --model.preset small_v1
pretrain label_free "$data/recordings/*.parquet"
# prepare.py writes four files, in the order of a hash of the recordings.
pretrain label_free-25 "$data/recordings/*-00000-*.parquet"
pretrain label_free-50 "$data/recordings/*-0000[01]-*.parquet"
verify $PEERS "$out/untrained" "$out/untrained_v1" "$out"/label_free{-25,-50,}
for share in $SHARES; do
    for start in untrained label_free; do
        finetune "$out/$start" "$share"
        verify "$out/labels-$share-from-$start"
    done
done
python "$recipes/probe.py" "$out/untrained" "$out/label_free" --data "$data/dev/*.parquet" >"$out/probe.md"
