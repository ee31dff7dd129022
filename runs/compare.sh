#!/usr/bin/env bash
# The README's table: models as they are, and the students of real_cpu.sh, own_teacher.sh and article.sh.
source "$(dirname "$0")/common.sh"

if [[ ! -e $OUT/muse.parquet ]]; then
  python runs/muse_vectors.py --sts "$DEV" "$TEST" --bitext "${TATOEBA[@]}" --output "$OUT/muse.parquet"
fi

time $LAUNCH eval_sts.py --sts test="$TEST" dev="$DEV" --bitext "${TATOEBA[@]}" --output_dir "$OUT/compared" \
  --prompt e5="query: " --model_name_or_path minilm="$MINILM" mpnet="$MPNET" muse="$OUT/muse.parquet" \
  graft="$OUT/student" grafted="$OUT/run/student" e5="$OUT/e5" e5_bare="$OUT/e5" \
  own-1="$OUT/own-1/student" own-2="$OUT/own-2/student" own-3="$OUT/own-3/student" \
  article-1="$OUT/article-1/student" article-2="$OUT/article-2/student" article-3="$OUT/article-3/student"
