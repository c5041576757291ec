#!/usr/bin/env bash
# Everything that needs a GPU, in steps of less than nine minutes each. What is finished is not done again, a
# step that fails does not stop those after it, and trainings go on where they were stopped.
#
#   benchmarks/gpu_suite.sh [--output DIR] [--data-dir DIR] [--dataset-name NAME] [--budget SECONDS]
#                           [--only STEP]... [--list]
#
# --output        where logs, results and marks of finished steps go; build/gpu-suite by default
# --data-dir      CIFAR-10: the folder of its archive, or one with class folders in train/ and test/
# --dataset-name  what results call the images of class folders
# --budget        start no step that might not end within so many seconds from now
# --only          this step alone, even if it is finished; may be given several times
# --list          the steps, and what became of them
#
# Exit codes: 0 all steps asked for are finished or skipped, 1 a step failed, 2 wrong arguments or no GPU,
# 3 all is well so far, but steps are left: run the same command again.
set -uo pipefail

suite=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/$(basename "${BASH_SOURCE[0]}")
cd "$(dirname "$suite")/.." || exit 2
PYTHON=${PYTHON:-python}
readonly UNFINISHED=75 SKIPPED=77 # exit codes of steps

# name | seconds it may take | what it does; the function step_NAME (with _ for -) does it
STEPS=(
  "doctor|120|the kernels are in use and agree with the definition"
  "ops|480|tests of the fused op on the GPU"
  "tests|530|all other tests that need a GPU"
  "resources|240|registers and spills of the kernels"
  "memcheck|300|compute-sanitizer: addresses"
  "racecheck|480|compute-sanitizer: races in shared memory"
  "initcheck|480|compute-sanitizer: memory that nobody wrote"
  "synccheck|300|compute-sanitizer: barriers"
  "measure-op|240|python -m rotnet_fast.benchmark: ceilings, op, stages"
  "measure-nin4|530|python -m rotnet_fast.benchmark: whole steps of NIN-4"
  "measure-nin3|530|python -m rotnet_fast.benchmark: whole steps of NIN-3"
  "measure-nin5|530|python -m rotnet_fast.benchmark: whole steps of NIN-5"
  "bench-kernels|300|pytest benchmarks: ceilings, and kernels in graphs"
  "bench-op|530|pytest benchmarks: the op against other ways"
  "bench-loaders|530|pytest benchmarks: loaders"
  "bench-nin4|530|pytest benchmarks: steps of NIN-4"
  "bench-nin3|530|pytest benchmarks: steps of NIN-3"
  "bench-nin5|530|pytest benchmarks: steps of NIN-5"
  "pretrain|530|100 epochs of the paper's recipe, in slices"
  "speedrun|530|preset speedrun against preset paper, three seeds, in slices"
  "study|530|every table and figure, in slices"
)

step_doctor() { "$PYTHON" -m rotnet_fast.doctor; }
step_ops() { "$PYTHON" -m pytest -q --only-cuda tests/test_ops_*.py; }
step_tests() { "$PYTHON" -m pytest -q --only-cuda tests --ignore-glob='*/test_ops_*.py'; }

step_resources() {
  command -v nvcc > /dev/null || { echo "nvcc is not installed"; return "$SKIPPED"; }
  "$PYTHON" -m benchmarks.kernel_resources --output "$RESULTS/kernel-resources.json"
}

step_memcheck() { sanitize memcheck; }
step_racecheck() { sanitize racecheck; }
step_initcheck() { sanitize initcheck; }
step_synccheck() { sanitize synccheck; }

# A planted fault first: a tool that misses it would also miss those of the kernels.
sanitize() {
  local tool=$1 planted=$WORK/planted_faults needed
  local check=(compute-sanitizer --tool "$tool" --error-exitcode 99)
  for needed in compute-sanitizer nvcc; do
    command -v "$needed" > /dev/null || { echo "$needed is not installed"; return "$SKIPPED"; }
  done
  nvcc -arch=native -lineinfo -o "$planted" benchmarks/planted_faults.cu || return 1
  local status=0
  "${check[@]}" "$planted" "$tool" || status=$?
  ((status == 99)) || { echo "$tool did not notice the planted fault"; return 1; }
  echo "the planted fault was noticed; now the kernels"
  # Memory of torch's own store would hide what lies outside of a tensor.
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 PYTORCH_ALLOC_CONF=expandable_segments:False \
    "${check[@]}" "$PYTHON" -m benchmarks.small_kernels
}

step_measure_op() { measure op --what op stages; }
step_measure_nin4() { measure nin4 --what steps --blocks 4; }
step_measure_nin3() { measure nin3 --what steps --blocks 3; }
step_measure_nin5() { measure nin5 --what steps --blocks 5; }
measure() {
  local name=$1
  shift
  "$PYTHON" -m rotnet_fast.benchmark --device cuda --output "$RESULTS/measure-$name.json" "$@"
}

step_bench_kernels() { bench kernels benchmarks/test_ceilings.py benchmarks/test_rotate_batch_cuda.py; }
step_bench_op() { bench op benchmarks/test_rotate_batch.py -k cuda; }
step_bench_loaders() { bench loaders benchmarks/test_loaders.py -k cuda; }
step_bench_nin4() { bench nin4 benchmarks/test_training.py -k cuda-4-; }
step_bench_nin3() { bench nin3 benchmarks/test_training.py -k cuda-3-; }
step_bench_nin5() { bench nin5 benchmarks/test_training.py -k cuda-5-; }
bench() {
  local name=$1
  shift
  "$PYTHON" -m pytest -q --benchmark-only --benchmark-json="$RESULTS/bench-$name.json" "$@"
}

step_pretrain() {
  with_data || return
  slice "$PYTHON" -m rotnet_fast.pretrain --preset paper "${DATA_FLAGS[@]}" --output "$RESULTS/pretrain" --resume auto
}

step_speedrun() {
  DATASET_NAME='' with_data || return
  slice "$PYTHON" -m benchmarks.speedrun "${DATA_FLAGS[@]}" --output "$RESULTS/speedrun"
}

# Some minutes of a command that goes on where it was stopped.
slice() {
  timeout --kill-after=30 -s INT 470 "$@"
  local status=$?
  # Interrupted by the clock (124) or as the program says so itself (130): it has saved, and goes on next time.
  case $status in 124 | 130) return "$UNFINISHED" ;; *) return "$status" ;; esac
}

step_study() {
  with_data || return
  "$PYTHON" -m rotnet_fast.reproduce --preset paper --seeds 1 "${DATA_FLAGS[@]}" \
    --output "$RESULTS/study" --time-budget 7 | tee "$WORK/study.txt"
  local status=${PIPESTATUS[0]}
  [[ $status == 0 ]] && grep -q '^time budget spent' "$WORK/study.txt" && return "$UNFINISHED"
  return "$status"
}

with_data() {
  [[ -n $DATA_DIR ]] || { echo "needs CIFAR-10: give its folder with --data-dir"; return "$SKIPPED"; }
  DATA_FLAGS=(--dataset cifar10 --data-dir "$DATA_DIR")
  [[ -d $DATA_DIR/train ]] || return 0
  DATA_FLAGS=(--dataset folder --data-dir "$DATA_DIR")
  [[ -z $DATASET_NAME ]] || DATA_FLAGS+=(--dataset-name "$DATASET_NAME")
}

require_gpu() {
  "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2> /dev/null ||
    refuse "$PYTHON finds no torch with a CUDA device on this machine; nothing was run"
}

refuse() {
  echo "gpu_suite.sh: $*" >&2
  exit 2
}

# Tests bring steps of their own.
if [[ -n ${ROTNET_GPU_SUITE_STEPS:-} ]]; then
  # shellcheck source=/dev/null
  source "$ROTNET_GPU_SUITE_STEPS" || exit 2
fi

# The suite runs itself once per step, so that `timeout` can end a step with all that it has started.
if [[ ${1:-} == --run ]]; then
  "step_${2//-/_}"
  exit
fi

output=build/gpu-suite list='' budget='' only=()
export DATA_DIR='' DATASET_NAME=''
while (($#)); do
  case $1 in
    --list) list=1 && shift && continue ;;
    --output | --data-dir | --dataset-name | --budget | --only) ;;
    *) refuse "unknown argument $1; see the head of benchmarks/gpu_suite.sh" ;;
  esac
  [[ $# -ge 2 && -n $2 ]] || refuse "$1 needs a value"
  case $1 in
    --output) output=$2 ;;
    --data-dir) DATA_DIR=$(realpath -m -- "$2") ;;
    --dataset-name) DATASET_NAME=$2 ;;
    --budget)
      [[ $2 =~ ^[0-9]+$ ]] || refuse "--budget is $2; give whole seconds"
      budget=$2
      ;;
    --only) only+=("$2") ;;
  esac
  shift 2
done

names=("${STEPS[@]%%|*}")
for name in ${only[@]+"${only[@]}"}; do
  [[ " ${names[*]} " == *" $name "* ]] || refuse "there is no step $name; --list names them"
done

if [[ -n $list ]]; then
  for step in "${STEPS[@]}"; do
    IFS='|' read -r name limit what <<< "$step"
    state=$(cat "$output/state/$name" 2> /dev/null || echo 'not run')
    printf '%-14s %4s s  %-10s %s\n' "$name" "$limit" "$state" "$what"
  done
  exit 0
fi

require_gpu
mkdir -p "$output"/{state,logs,results,work} || refuse "cannot write to $output"
output=$(realpath -- "$output")
export PYTHON OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE} RESULTS=$output/results WORK=$output/work
failed=() left=()
for step in "${STEPS[@]}"; do
  IFS='|' read -r name limit _ <<< "$step"
  state=$output/state/$name log=$output/logs/$name.log
  if ((${#only[@]})); then
    [[ " ${only[*]} " == *" $name "* ]] || continue
  elif [[ $(cat "$state" 2> /dev/null) == finished ]]; then
    echo "$name: finished before"
    continue
  fi
  if [[ -n $budget ]] && ((SECONDS + limit > budget)); then
    echo "$name: left for the next time, as it may take $limit s"
    left+=("$name")
    continue
  fi
  start=$SECONDS
  timeout --kill-after=20 "$limit" bash "$suite" --run "$name" > "$log" 2>&1 < /dev/null
  status=$? took=$((SECONDS - start))
  case $status in
    0) word=finished ;;
    "$SKIPPED") word=skipped ;;
    "$UNFINISHED") word=unfinished && left+=("$name") ;;
    124 | 137) word=failed && echo "stopped after $limit s" >> "$log" ;;
    *) word=failed ;;
  esac
  echo "$word" > "$state"
  echo "$name: $word after $took s: $(grep -v '^[[:space:]]*$' "$log" | tail -n 1 | cut -c 1-200)"
  [[ $word != failed ]] || failed+=("$name")
done
if ((${#failed[@]})); then
  echo "failed: ${failed[*]}; see $output/logs" >&2
  exit 1
fi
if ((${#left[@]})); then
  echo "left: ${left[*]}; run the same command again"
  exit 3
fi
