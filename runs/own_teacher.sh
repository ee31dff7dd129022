#!/usr/bin/env bash
# multilingual-e5-small taught by its own vectors of the English side: its other languages move to its English.
source "$(dirname "$0")/common.sh"

python build_student.py trim --model_name_or_path "$E5" --pairs_dir "$OUT/pairs" --output_dir "$OUT/e5"

for seed in ${SEEDS:-1 2 3}; do
  time $LAUNCH --mixed_precision bf16 train_distill.py --pairs_dir "$OUT/pairs" --teacher_model_name_or_path "$E5" \
    --student_model_name_or_path "$OUT/e5" --output_dir "$OUT/own-$seed" --seed "$seed" --num_train_epochs 1 \
    --loss mse distribution:0.3 --learning_rate 5e-4 --language_temperature 2 --freeze_embeddings --max_seq_length 64 \
    --sts_dev "$DEV" --eval_steps 475 --resume_from_checkpoint latest
done
