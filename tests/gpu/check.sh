#!/usr/bin/env bash
# Checks this checkout on a CUDA device: `doctor`, the tests of this folder, `bench` at real sizes with synthetic weights,
# and `eval` and `tune` on the embedded model.
# Nothing need be installed but torch, transformers, pydantic, click, rich, PyYAML, pyarrow, scipy and pytest.
#
#   tests/gpu/check.sh [OUT [CHECK...]]    tables, JSON and logs go to OUT (results/reference/gpu); PYTHON names the
#                                          interpreter; only the named checks run, or all
#
# May take a quarter of an hour on a large GPU. Exits with 1 when a test or a bench fails; without a device it does nothing.
set -uo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
out=$(realpath -m "${1:-$root/results/reference/gpu}")
python=${PYTHON:-python3}
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
only=("${@:2}")
cd "$root" || exit 1

devices=$("$python" -c 'import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)') || exit 1
if [ "$devices" = 0 ]; then
    echo "no CUDA device is visible to $python: nothing to check"
    exit 0
fi

failed=()

# check NAME LIMIT_S COMMAND...: runs it with its output in OUT/NAME/log, whose end is shown when it fails
check() {
    local name=$1 limit_s=$2 started=$SECONDS code=0
    shift 2
    [[ ${#only[@]} = 0 || " ${only[*]} " = *" $name "* ]] || return 0
    mkdir -p "$out/$name"
    timeout "$limit_s" "$@" > "$out/$name/log" 2>&1 || code=$?
    echo "$name: exit code $code after $((SECONDS - started)) s"
    if [ "$code" != 0 ]; then
        failed+=("$name")
        tail -n 40 "$out/$name/log" | cut -c 1-400
    fi
}

# bench NAME FLAGS...
bench() {
    local name=$1
    shift
    check "$name" 200 "$python" -m adadecode bench --device cuda --dtype bfloat16 \
        --limit 2 --repeats 3 --out "$out/$name" "$@"
}

# its warnings, exit code 1, are read in its log
check doctor 200 bash -c '"$@"; (($? < 2))' doctor "$python" -m adadecode doctor --local --device cuda --out "$out/doctor/run"
check pytest 400 "$python" -m pytest tests/gpu -p no:cacheprovider --durations 10
check eval-demo 120 "$python" -m adadecode eval --local --device cuda --task demo --limit 8 \
    --max-new-tokens 96 --out "$out/eval-demo"
bench llama-3.1-8b-graphs --shape llama-3.1-8b --kernels graphs
bench llama-3.1-8b-compile --shape llama-3.1-8b --kernels compile
bench llama-3.1-8b-compile-shortlist --shape llama-3.1-8b --kernels compile --head shortlist
bench llama-3.1-8b-compile-shortlist-gate --shape llama-3.1-8b --kernels compile --head shortlist --gate 0.5
bench llama-3.2-1b-graphs --shape llama-3.2-1b --kernels graphs
bench llama-3.2-1b-compile --shape llama-3.2-1b --kernels compile
bench llama-3.2-1b-compile-shortlist-gate --shape llama-3.2-1b --kernels compile --head shortlist --gate 0.5
check tune-demo 300 "$python" -m adadecode tune --device cuda --task demo --limit 12 \
    --max-new-tokens 96 --repeats 2 --out "$out/tune-demo"
for log in "$out"/{doctor,pytest,eval-demo,tune-demo}/log; do
    [ -e "$log" ] && printf '\n%s\n' "$log" && tail -n 20 "$log"
done
for text in "$out"/*/bench.txt; do
    [ -e "$text" ] && printf '\n%s\n' "$(basename "$(dirname "$text")")" && cat "$text"
done

if [ ${#failed[@]} != 0 ]; then
    echo "failed: ${failed[*]}"
    exit 1
fi
echo "all checks passed; results in $out"
