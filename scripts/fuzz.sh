#!/usr/bin/env bash
# Fuzzes what peers and files may say: keys, each value type, peer files, policies, and sequences of
# lists and watch events. Fails on a crash, and if a target runs less often than it should.
#   scripts/fuzz.sh [--seconds N] [TARGET...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib.sh
source scripts/lib.sh

seconds=10
targets=()
while (($#)); do
    case "$1" in
        --seconds)
            seconds="${2:?--seconds needs a number}"
            shift 2
            ;;
        -*) die "unknown option $1" ;;
        *)
            targets+=("$1")
            shift
            ;;
    esac
done
[[ "$seconds" =~ ^[1-9][0-9]*$ ]] || die "--seconds needs a number, not $seconds"

# Fewer executions a second than this are no fuzzing; a quiet machine does many times as many.
readonly FLOOR_PER_SECOND=20

install_build_tools
install_missing g++=c++
if ! command -v cargo-fuzz >/dev/null; then
    run cargo install --locked cargo-fuzz
fi

# Without a sanitizer the stable compiler will do; overflows and assertions are checked.
build=(--sanitizer none --debug-assertions --codegen-units 16 --target-dir target/fuzz)
run cargo fuzz build "${build[@]}"
mapfile -t all < <(cargo fuzz list)
((${#targets[@]})) || targets=("${all[@]}")
triple="$(rustc -vV | sed -n 's/^host: //p')"
work=target/fuzz/work
mkdir -p "$work"

# What a target learns stays in target/, for the next run.
fuzz() {
    local target="$1" corpus="$work/$1" seeds="fuzz/seeds/$1" seed
    mkdir -p "$corpus"
    for seed in "$seeds"/*; do
        case "$seed" in
            # Escapes stand for bytes that nobody can read.
            *.printf) printf '%b' "$(<"$seed")" >"$corpus/seed" ;;
            *) [[ ! -e "$seed" ]] || cp "$seed" "$corpus/" ;;
        esac
    done
    "target/fuzz/$triple/release/$target" -max_total_time="$seconds" -timeout=10 -max_len=4096 -len_control=0 \
        -print_final_stats=1 -artifact_prefix="$work/$target-" "$corpus" >"$work/$target.log" 2>&1
}

# Says how often a target ran; fails if it found something or ran too seldom.
judge() {
    local target="$1" status="$2" executions
    executions="$(sed -n 's/^stat::number_of_executed_units: *//p' "$work/$target.log")"
    printf '%-16s %10s executions in %s s\n' "$target" "${executions:-0}" "$seconds"
    if ((status != 0)); then
        grep -vE '^(#[0-9]|INFO:|NEW_FUNC)' "$work/$target.log" | tail -n 40 >&2
        printf 'error: %s found a fault; its input is %s/%s-*\n' "$target" "$work" "$target" >&2
        return 1
    fi
    if ((${executions:-0} < FLOOR_PER_SECOND * seconds)); then
        printf 'error: %s ran less often than %d times a second\n' "$target" \
            "$FLOOR_PER_SECOND" >&2
        return 1
    fi
}

# As many at once as there are processors.
failed=0
width="$(nproc)"
for ((first = 0; first < ${#targets[@]}; first += width)); do
    batch=("${targets[@]:first:width}")
    pids=()
    for target in "${batch[@]}"; do
        fuzz "$target" &
        pids+=($!)
    done
    for i in "${!batch[@]}"; do
        status=0
        wait "${pids[i]}" || status=$?
        judge "${batch[i]}" "$status" || failed=1
    done
done
exit "$failed"
