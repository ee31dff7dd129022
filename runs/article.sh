#!/usr/bin/env bash
# all-mpnet-base-v2, English, the article's first teacher, teaches multilingual-e5-small; by more than squared errors.
source "$(dirname "$0")/common.sh"

python build_student.py trim --model_name_or_path "$E5" --pairs_dir "$OUT/pairs" --output_dir "$OUT/e5"

for seed in ${SEEDS:-1 2 3}; do
  time $LAUNCH --mixed_precision bf16 train_distill.py --pairs_dir "$OUT/pairs" \
    --teacher_model_name_or_path "$MPNET" --teacher_dtype bf16 \
    --student_model_name_or_path "$OUT/e5" --student_prompt 'query: ' --projection --output_dir "$OUT/article-$seed" \
    --seed "$seed" --num_train_epochs 1.5 --loss mse distribution:0.3 --learning_rate 3e-4 --language_temperature 2 \
    --freeze_embeddings --max_seq_length 64 --sts_dev "$DEV" --eval_steps 709 --resume_from_checkpoint latest
done
