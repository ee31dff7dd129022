#!/usr/bin/env bash
# The four steps on real data, on two CPU cores, in under an hour: a student grafted from all-MiniLM-L6-v2, its teacher.
source "$(dirname "$0")/common.sh"
export HF_HUB_OFFLINE=1

time python build_student.py graft --encoder_model_name_or_path "$MINILM" --pairs_dir "$OUT/pairs" \
  --vocab_size 24000 --output_dir "$OUT/student"

time $LAUNCH --mixed_precision no train_distill.py --pairs_dir "$OUT/pairs" --teacher_model_name_or_path "$MINILM" \
  --student_model_name_or_path "$OUT/student" --output_dir "$OUT/run" --num_train_epochs 1 \
  --learning_rate 8e-4 --max_seq_length 64 --sts_dev "$DEV" --eval_steps 250 \
  --resume_from_checkpoint latest

time $LAUNCH --mixed_precision no eval_sts.py --model_name_or_path teacher="$MINILM" before="$OUT/student" after="$OUT/run/student" \
  --sts "$TEST" --bitext "${TATOEBA[@]}" --output_dir "$OUT/scores" --export_dir "$OUT/export"
