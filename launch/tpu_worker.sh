#!/usr/bin/env bash
# Run by launch/tpu_pod.sh on each worker of a TPU slice: its set-up, and one program that survives a lost connection.
set -euo pipefail

usage() {
  cat <<'END'
usage: bash launch/tpu_worker.sh SUBCOMMAND      (launch/tpu_pod.sh calls it on every worker)

  setup STORAGE            mount gs://BUCKET[/FOLDER] or HOST:/SHARE, install Python 3.12 and srsjax[tpu]
  start COMMAND [ARGS]     python -m srsjax.COMMAND in the mounted folder, in the background
  follow                   print its log until it ends
  status                   one line: "srsjax-status running", none, lost, or its exit code
  stop                     SIGTERM: training saves and exits with 75

Environment variables:
  SRSJAX_SHARED   where the storage is mounted; by default /mnt/srsjax
END
}

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
shared=${SRSJAX_SHARED:-/mnt/srsjax}
state=$HOME/.srsjax # of the last program started: pid, command, log, exit (its code, once it has ended)
export SRSJAX_VENV=$state/venv SRSJAX_EXTRAS=tpu PATH=$HOME/.local/bin:$PATH

fail() {
  printf 'srsjax: %s: %s\n' "$(uname -n)" "$*" >&2
  exit 2
}

main() {
  case ${1:-} in
    '' | -h | --help) usage && exit ;;
    setup) [[ $# == 2 ]] || fail "setup: expected one argument, gs://BUCKET[/FOLDER] or HOST:/SHARE" ;;
    start) [[ $# -ge 2 ]] || fail "start: expected a command" ;;
    follow | status | stop) [[ $# == 1 ]] || fail "$1: expected no arguments, found $2" ;;
    *) fail "no subcommand $1, expected setup, start, follow, status or stop" ;;
  esac
  mkdir -p "$state"
  "$@"
}

setup() {
  mount_shared "$1"
  if ! command -v uv >/dev/null; then
    python3 -m pip install --user --quiet uv # TPU images carry Python 3.10
  fi
  uv python find '>=3.12' >/dev/null 2>&1 || uv python install 3.12
  bash "$root/launch/local.sh" train --help >/dev/null # installs srsjax and checks that it starts
}

mount_shared() {
  if ! mountpoint -q "$shared"; then
    sudo mkdir -p "$shared"
    case $1 in
      gs://*) mount_bucket "${1#gs://}" ;;
      *:/*) mount_share "$1" ;;
      *) fail "storage $1: expected gs://BUCKET[/FOLDER] or HOST:/SHARE" ;;
    esac
  fi
  touch "$shared/.srsjax-$(uname -n)" || fail "$shared: $1 is mounted but cannot be written to"
  rm -f "$shared/.srsjax-$(uname -n)"
}

mount_bucket() {
  local path=${1%/} only=()
  local bucket=${path%%/*}
  [[ $path == "$bucket" ]] || only=("--only-dir=${path#*/}")
  command -v gcsfuse >/dev/null || install_gcsfuse
  sudo chown "$(id -u):$(id -g)" "$shared"
  # A checkpoint is committed by renaming its folder, which gcsfuse refuses above this many files (default 0).
  gcsfuse --implicit-dirs --rename-dir-limit=200000 ${only[@]+"${only[@]}"} "$bucket" "$shared"
}

# https://cloud.google.com/storage/docs/cloud-storage-fuse/install
install_gcsfuse() {
  local key=/usr/share/keyrings/cloud.google.asc
  curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -c -s) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  sudo apt-get -qq update
  sudo apt-get -qq install -y gcsfuse >/dev/null
}

mount_share() {
  command -v mount.nfs >/dev/null || { sudo apt-get -qq update && sudo apt-get -qq install -y nfs-common >/dev/null; }
  sudo mount -t nfs -o rw,hard "$1" "$shared"
  sudo chown "$(id -u):$(id -g)" "$shared"
}

start() {
  local command
  command=$(printf '%q ' "$@")
  if [[ $(condition) == running ]]; then
    [[ $(cat "$state/command") == "$command" ]] || fail "already running: $(cat "$state/command"); stop it first"
    return
  fi
  mountpoint -q "$shared" || fail "$shared: nothing is mounted there; a run folder on this disk would be lost with it"
  rm -f "$state/exit"
  echo "$command" >"$state/command"
  cd "$shared"
  # The outer shell survives SIGTERM to record the program's exit code.
  # shellcheck disable=SC2016
  setsid bash -c 'trap : TERM INT; "${@:2}" && code=0 || code=$?; echo "$code" >"$1.new"; mv "$1.new" "$1"' \
    srsjax "$state/exit" bash "$root/launch/local.sh" "$@" </dev/null >"$state/log" 2>&1 &
  echo $! >"$state/pid"
}

condition() {
  if [[ -f $state/exit ]]; then
    cat "$state/exit"
  elif [[ ! -f $state/pid ]]; then
    echo none
  elif kill -0 "$(cat "$state/pid")" 2>/dev/null; then
    echo running
  elif [[ -f $state/exit ]]; then # it ended between the two checks
    cat "$state/exit"
  else
    echo lost
  fi
}

status() { echo "srsjax-status $(condition)"; }

follow() {
  [[ -f $state/pid ]] || fail "nothing was started here"
  tail -n +1 -F --pid="$(cat "$state/pid")" "$state/log" 2>/dev/null
}

stop() {
  if [[ $(condition) == running ]]; then
    kill -TERM -- "-$(cat "$state/pid")"
  fi
}

main "$@"
