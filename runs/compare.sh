#!/usr/bin/env bash
# One table: models as they are, and the students of real_cpu.sh, own_teacher.sh, article.sh and two_teachers.sh.
source "$(dirname "$0")/common.sh"

if [[ ! -e $OUT/muse.parquet ]]; then
  python runs/muse_vectors.py --sts "$DEV" "$TEST" --bitext "${TATOEBA[@]}" --output "$OUT/muse.parquet"
fi

shopt -s nullglob # of runs that have been made
STUDENTS=()
for run in own article two; do
  for folder in "$OUT/$run"-[0-9]/student; do
    seed=${folder%/student}
    STUDENTS+=("$run-${seed##*-}=$folder")
  done
done

time $LAUNCH eval_sts.py --sts test="$TEST" dev="$DEV" --bitext "${TATOEBA[@]}" --output_dir "$OUT/compared" \
  --prompt e5_query="query: " --model_name_or_path minilm="$MINILM" mpnet="$MPNET" muse="$OUT/muse.parquet" \
  graft="$OUT/student" grafted="$OUT/run/student" e5="$E5" e5_query="$E5" "${STUDENTS[@]}"
