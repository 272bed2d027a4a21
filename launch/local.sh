#!/usr/bin/env bash
# Runs srsjax on this machine; the first call makes a virtual environment and installs into it.
set -euo pipefail

usage() {
  cat <<'END'
usage: bash launch/local.sh [--dry-run] COMMAND [ARGUMENTS]

  bash launch/local.sh train --config ctr.py [--FIELD VALUE ...]
  bash launch/local.sh test [PYTEST ARGUMENTS]
  bash launch/local.sh COMMAND ...        python -m srsjax.COMMAND in the environment

--dry-run prints the commands without running them.

Environment variables:
  PYTHON          the Python to use (3.12 or newer); by default the first one found
  SRSJAX_VENV     the virtual environment; by default .venv in the checkout
  SRSJAX_EXTRAS   extras of pyproject.toml to install, separated by commas: cuda, tpu, reference, ...
END
}

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
venv=${SRSJAX_VENV:-$root/.venv}
[[ $venv == /* ]] || venv=$PWD/$venv
stamp=$venv/srsjax-stamp # line 1: what the environment was made from; line 2: its extras
lock=$venv.lock
dry_run=

# shellcheck source=common.sh
source "$root/launch/common.sh"

main() {
  if [[ ${1:-} == --dry-run ]]; then
    dry_run=yes
    shift
  fi
  case ${1:-} in
    '' | -h | --help) usage && exit ;;
    test) ;;
    *) known_command "$1" || fail "no command $1, expected test, $(commands)" ;;
  esac
  local command=$1 extras=${SRSJAX_EXTRAS:-}
  shift
  if [[ $command == test ]]; then
    extras=test,$extras
  fi
  set_up "$extras"
  if [[ $command == test ]]; then
    step cd "$root"
    # --dist loadfile: the tests of a file run in one process and share its compiled programs.
    step exec "$venv/bin/python" -m pytest -n auto --maxprocesses 8 --dist loadfile "$@"
  else
    # Commands that srsjax prints are called as this one was.
    export SRSJAX_COMMAND=${SRSJAX_COMMAND:-bash $(printf %q "$0")}
    step exec "$venv/bin/python" -m "srsjax.$command" "$@"
  fi
}

# ---------------------------------------------------------------------------------------------- Python

# Prints the path of a Python if it is 3.12 or newer and can make virtual environments; fails if not.
# Runs in the checkout, where pyenv honours .python-version.
suitable() {
  (cd "$root" && "$1" -c 'import sys, venv, ensurepip
sys.version_info >= (3, 12) or sys.exit(1)
print(sys.executable)') 2>/dev/null
}

candidates() {
  local wanted versions=${PYENV_ROOT:-${HOME:-}/.pyenv}/versions
  wanted=$(cat "$root/.python-version")
  printf '%s\n' python3 python3.13 python3.12 python3.14
  if [[ -d $versions ]]; then
    find "$versions" -maxdepth 1 -name "$wanted*" | sort -V -r | sed 's|$|/bin/python|'
    find "$versions" -maxdepth 1 -name '3.*' | sort -V -r | sed 's|$|/bin/python|'
  fi
  if command -v uv >/dev/null; then
    uv python find '>=3.12' 2>/dev/null || true
  fi
}

find_python() {
  local candidate
  if [[ ${PYTHON:-} ]]; then
    suitable "$PYTHON" || fail "PYTHON=$PYTHON: expected Python 3.12 or newer with its venv module"
    return
  fi
  while IFS= read -r candidate; do
    suitable "$candidate" && return
  done < <(candidates)
  fail "no Python 3.12 or newer with its venv module is here; install one (apt install python3.12-venv," \
    "brew install python@3.13, pyenv install 3.12, uv python install 3.12) or set PYTHON to its path"
}

# ---------------------------------------------------------------------------------------------- environment

# Makes or updates the environment if it does not match the checkout and the extras.
set_up() {
  local made_from extras python started=$SECONDS
  made_from="$root ${PYTHON:-} $(cat "$root/pyproject.toml" "$root/.python-version" | cksum)"
  extras=$(joined "$1")
  if up_to_date "$made_from" "$extras"; then
    return
  fi
  take_lock
  if ! up_to_date "$made_from" "$extras"; then # another set-up may have finished while this one waited
    if keepable; then
      extras=$(joined "$extras,$(sed -n 2p "$stamp" 2>/dev/null || true)")
    else
      python=$(find_python)
      say "making $venv with $("$python" -V)"
      make_venv "$python"
    fi
    say "installing srsjax and its dependencies into it (once, a minute or two)"
    install "$extras"
    if [[ ! $dry_run ]]; then
      printf '%s\n' "$made_from" "$extras" >"$stamp"
      say "ready after $((SECONDS - started)) s"
    fi
  fi
  release_lock
}

# Sorts and deduplicates a list of extras.
joined() { tr ',' '\n' <<<"$1" | sed '/^$/d' | sort -u | paste -s -d , -; }

up_to_date() {
  [[ -f $stamp && -x $venv/bin/python && $(sed -n 1p "$stamp") == "$1" ]] &&
    [[ $(joined "$2,$(sed -n 2p "$stamp")") == "$(sed -n 2p "$stamp")" ]]
}

# Whether the environment can be updated in place: it works and has the requested Python.
keepable() {
  suitable "$venv/bin/python" >/dev/null || return 1
  [[ ! ${PYTHON:-} ]] && return
  local base='import sys; print(sys.version, sys.base_prefix)'
  [[ $("$PYTHON" -c "$base" 2>/dev/null) == "$("$venv/bin/python" -c "$base")" ]]
}

make_venv() {
  if [[ -e $venv && ! -f $stamp && $(ls -A "$venv") ]]; then
    fail "$venv: not made by this script and not a Python 3.12 environment; move it away or set SRSJAX_VENV"
  fi
  if [[ ! $dry_run ]]; then
    rm -rf "$venv"
    mkdir -p "$venv"
    touch "$stamp" # marks the folder as ours even if the set-up is interrupted
  fi
  step "$1" -m venv "$venv"
}

# Installs the checkout, editable, with these extras. pip's output is shown only if it fails.
install() {
  local python=$venv/bin/python log=$venv/install.log
  local pip=("$python" -m pip install --editable "$root${1:+[$1]}")
  if [[ $dry_run ]]; then
    step "${pip[@]}"
    return
  fi
  "$python" -m pip --version >/dev/null 2>&1 || "$python" -m ensurepip >/dev/null
  if ! "${pip[@]}" </dev/null >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    say "pip failed; its full output is in $log"
    exit 1
  fi
}

# One set-up at a time: the lock is a folder, which mkdir makes atomically; it holds the pid of its owner.
take_lock() {
  [[ $dry_run ]] && return
  local holder waiting=
  mkdir -p "$(dirname -- "$venv")"
  until mkdir "$lock" 2>/dev/null; do
    holder=$(cat "$lock/pid" 2>/dev/null || true)
    if [[ $holder ]] && ! kill -0 "$holder" 2>/dev/null; then
      rm -rf "$lock"
      continue
    fi
    if [[ ! $waiting ]]; then
      say "waiting for another set-up (process ${holder:-unknown}); if there is none, remove $lock"
      waiting=yes
    fi
    sleep 1
  done
  echo $$ >"$lock/pid"
  trap release_lock EXIT
}

release_lock() {
  [[ $dry_run ]] || rm -rf "$lock"
  trap - EXIT
}

main "$@"
