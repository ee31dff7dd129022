#!/usr/bin/env bash
# One table: models as they are, and the students of real_cpu.sh, own_teacher.sh and article.sh.
source "$(dirname "$0")/common.sh"

if [[ ! -e $OUT/muse.parquet ]]; then
  python runs/muse_vectors.py --sts "$DEV" "$TEST" --bitext "${TATOEBA[@]}" --output "$OUT/muse.parquet"
fi

STUDENTS=()
for seed in ${SEEDS:-1 2 3}; do
  STUDENTS+=("own-$seed=$OUT/own-$seed/student" "article-$seed=$OUT/article-$seed/student")
done

time $LAUNCH eval_sts.py --sts test="$TEST" dev="$DEV" --bitext "${TATOEBA[@]}" --output_dir "$OUT/compared" \
  --prompt e5_query="query: " --model_name_or_path minilm="$MINILM" mpnet="$MPNET" muse="$OUT/muse.parquet" \
  graft="$OUT/student" grafted="$OUT/run/student" e5="$E5" e5_query="$E5" "${STUDENTS[@]}"
