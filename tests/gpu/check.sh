#!/usr/bin/env bash
# Checks this checkout on a CUDA device: `doctor`, the tests of this folder, `bench` at real sizes with synthetic weights,
# and `eval` and `tune` on the embedded model. A check that fails is told, and the others go on.
# Nothing need be installed but torch, transformers, pydantic, click, rich, PyYAML, pyarrow, scipy and pytest.
#
#   tests/gpu/check.sh [OUT [CHECK...]]    tables, JSON and logs go to OUT, a new folder (results/reference/gpu-NAME-COMMIT),
#                                          to be committed; PYTHON names the interpreter. With CHECKs only these run, and
#                                          what OUT has of them is made again
#
# OUT/README.md says on what, of which commit and with which outcome. May take twenty minutes on a large GPU. Exits with 1 when
# a check fails or OUT is in the way; without a device it does nothing and exits with 0.
set -uo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-python3}
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
cd "$root" || exit 1

devices=$("$python" -c 'import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)') || exit 1
if [ "$devices" = 0 ]; then
    echo "no CUDA device is visible to $python: nothing to check"
    exit 0
fi

facts=$("$python" tests/gpu/facts.py) || exit 1
name=$(sed -n 's/^# //p' <<< "$facts" | head -n 1)
out=$(realpath -m --relative-base="$root" "${1:-results/reference/$name}")
only=("${@:2}")
if [[ -e $out/README.md && ${#only[@]} = 0 ]]; then
    echo "$out has a README.md of earlier checks: give another folder, or name the checks that are to be made again"
    exit 1
fi
mkdir -p "$out" || exit 1
grep -qxF "# $name" "$out/README.md" 2> /dev/null || printf '%s\n\n' "$facts" >> "$out/README.md" || exit 1
cat >> "$out/README.md" << END || exit 1
Made by \`tests/gpu/check.sh\`; each check has its log beside its tables.

| check | exit code | seconds | command |
|---|---|---|---|
END

passed=0
failed=()

# check NAME LIMIT_S COMMAND...: runs it with its output in OUT/NAME/log, whose end is shown when it fails
check() {
    local name=$1 limit_s=$2 started=$SECONDS code=0
    shift 2
    [[ ${#only[@]} = 0 || " ${only[*]} " = *" $name "* ]] || return 0
    [ -e "$out/$name/log" ] && rm -rf "${out:?}/$name"
    mkdir -p "$out/$name"
    timeout --kill-after 20 "$limit_s" "$@" > "$out/$name/log" 2>&1 || code=$?
    [ "$code" = 124 ] && echo "not done after $limit_s s" >> "$out/$name/log"
    [[ $name = doctor && $code = 1 ]] && code="0 (with warnings)"
    echo "$name: exit code $code after $((SECONDS - started)) s"
    echo "| \`$name\` | $code | $((SECONDS - started)) | \`${*/#"$python"/python}\` |" >> "$out/README.md"
    if [[ $code = 0* ]]; then
        passed=$((passed + 1))
    else
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

check doctor 200 "$python" -m adadecode doctor --local --device cuda --out "$out/doctor/run"
check pytest 900 "$python" -m pytest tests/gpu -p no:cacheprovider --durations 10
check eval-demo 120 "$python" -m adadecode eval --local --device cuda --task demo --limit 8 \
    --max-new-tokens 96 --out "$out/eval-demo"
check eval-demo-drawn 120 "$python" -m adadecode eval --local --device cuda --task demo --limit 8 \
    --max-new-tokens 96 --temperature 0.7 --top-p 0.9 --out "$out/eval-demo-drawn"
bench llama-3.1-8b-graphs --shape llama-3.1-8b --kernels graphs
bench llama-3.1-8b-compile --shape llama-3.1-8b --kernels compile
bench llama-3.1-8b-compile-shortlist --shape llama-3.1-8b --kernels compile --head shortlist
bench llama-3.1-8b-compile-shortlist-gate --shape llama-3.1-8b --kernels compile --head shortlist --gate 0.5
bench llama-3.1-8b-compile-drawn --shape llama-3.1-8b --kernels compile --temperature 0.7
bench llama-3.1-8b-compile-top-p --shape llama-3.1-8b --kernels compile --temperature 0.7 --top-p 0.9
bench llama-3.2-1b-eager --shape llama-3.2-1b --kernels eager
bench llama-3.2-1b-graphs --shape llama-3.2-1b --kernels graphs
bench llama-3.2-1b-compile --shape llama-3.2-1b --kernels compile
bench llama-3.2-1b-compile-shortlist-gate --shape llama-3.2-1b --kernels compile --head shortlist --gate 0.5
bench qwen3-8b-compile --shape qwen3-8b --kernels compile
check tune-demo 300 "$python" -m adadecode tune --device cuda --task demo --limit 12 \
    --max-new-tokens 96 --repeats 2 --out "$out/tune-demo"
for log in "$out"/{doctor,pytest,eval-demo,eval-demo-drawn,tune-demo}/log; do
    [ -e "$log" ] && printf '\n%s\n' "$log" && tail -n 20 "$log"
done
for text in "$out"/*/bench.txt; do
    [ -e "$text" ] && printf '\n%s\n' "$(basename "$(dirname "$text")")" && cat "$text"
done

if [ $((passed + ${#failed[@]})) = 0 ]; then
    verdict="no check is called ${only[*]}"
elif [ ${#failed[@]} = 0 ]; then
    verdict="all $passed checks passed"
else
    verdict="failed: ${failed[*]}; $passed others passed"
fi
printf '\n%s\n\n' "$verdict" >> "$out/README.md"
echo "$verdict; results in $out"
[[ $verdict = all* ]]
