#!/usr/bin/env bash
# Runs srsjax on a Cloud TPU slice of any size: creates the slice, resumes after preemption, deletes it.
set -euo pipefail

usage() {
  cat <<'END'
usage: bash launch/tpu_pod.sh [--dry-run] SUBCOMMAND

  up                          create the slice (or use an existing one), mount the storage on every worker,
                              copy this checkout, install srsjax[tpu]
  run COMMAND [ARGUMENTS]     python -m srsjax.COMMAND on all workers; follows the log of worker 0. Ctrl-C only
                              stops following: the workers keep running
  loop COMMAND [ARGUMENTS]    up and run, repeated until it is done: after exit code 75 (stopped, saved) the same command
                              resumes; a preempted slice is deleted and created again first
  logs                        follow the log of the running program again
  status                      the state of the slice and of each worker
  stop                        SIGTERM on all workers: training saves and exits with 75
  down                        delete the slice. The storage stays

  export SRSJAX_TPU=ctr SRSJAX_ZONE=us-east5-a SRSJAX_TPU_TYPE=v6e-16 SRSJAX_TPU_VERSION=v2-alpha-tpuv6e
  export SRSJAX_STORAGE=gs://my-bucket/ctr SRSJAX_PROVISIONING=spot
  bash launch/tpu_pod.sh loop train --config ctr.py --run_dir runs/ctr
  bash launch/tpu_pod.sh down

Programs run in the mounted folder, so relative paths (runs/, stores/, data/) are on the storage. A run folder
elsewhere is refused: it would be lost with the slice, and the workers would not share it. Buckets with a hierarchical
namespace rename a checkpoint's folder atomically; others rename file by file.

--dry-run prints the commands, assuming that there is no slice yet, without running them.

Environment variables:
  SRSJAX_TPU             name of the slice
  SRSJAX_ZONE            its zone
  SRSJAX_STORAGE         gs://BUCKET[/FOLDER], mounted with gcsfuse, or HOST:/SHARE, a Filestore or other NFS share
  SRSJAX_TPU_TYPE        accelerator type: v5litepod-16, v6e-16, ...
  SRSJAX_TPU_VERSION     runtime version: v2-alpha-tpuv5-lite, v2-alpha-tpuv6e, ...
  SRSJAX_PROVISIONING    on-demand (default; fails if no capacity is free), queued, spot, reserved or flex
  SRSJAX_MAX_DURATION    for flex: lifetime of the slice, at most 7d; by default 24h
  SRSJAX_PROJECT         by default that of gcloud's configuration
  SRSJAX_POLL            seconds between polls; by default 30

Exit codes: 0 done; 2 wrong arguments or input; 75 stopped, saved (run); 1 anything else.
END
}

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
shared=/mnt/srsjax
worker='bash srsjax/launch/tpu_worker.sh'
poll=${SRSJAX_POLL:-30}
dry_run=
state=       # state of the slice, set by look
condition=   # condition of the program, set by collect
assumed=NONE # the state that a dry run assumes

# shellcheck source=common.sh
source "$root/launch/common.sh"

main() {
  if [[ ${1:-} == --dry-run ]]; then
    dry_run=yes
    shift
  fi
  case ${1:-} in
    '' | -h | --help) usage && exit ;;
    run | loop) [[ $# -ge 2 ]] || fail "$1: expected a command of srsjax: $(commands)" ;;
    up | logs | status | stop | down) [[ $# == 1 ]] || fail "$1: expected no arguments, found $2" ;;
    *) fail "no subcommand $1, expected up, run, loop, logs, status, stop or down" ;;
  esac
  settings "$1"
  case $1 in
    run | loop) check_program "$shared" "${@:2}" ;;
  esac
  "$@"
}

settings() {
  need SRSJAX_TPU SRSJAX_ZONE
  where=("--zone=$SRSJAX_ZONE" ${SRSJAX_PROJECT:+"--project=$SRSJAX_PROJECT"} --quiet)
  provisioning=${SRSJAX_PROVISIONING:-on-demand}
  case $provisioning in
    on-demand | queued | spot | reserved | flex) ;;
    *) fail "SRSJAX_PROVISIONING=$provisioning: expected on-demand, queued, spot, reserved or flex" ;;
  esac
  tpus=(gcloud compute tpus)
  [[ $provisioning != flex ]] || tpus=(gcloud alpha compute tpus)
  case $1 in
    up | loop)
      need SRSJAX_TPU_TYPE SRSJAX_TPU_VERSION SRSJAX_STORAGE
      [[ $SRSJAX_STORAGE =~ ^(gs://[a-z0-9][a-z0-9._-]*(/[A-Za-z0-9._/-]+)?|[A-Za-z0-9.-]+:/[A-Za-z0-9._/-]+)$ ]] ||
        fail "SRSJAX_STORAGE=$SRSJAX_STORAGE: expected gs://BUCKET[/FOLDER] or HOST:/SHARE, storage that outlives the slice"
      ;;
  esac
}

# ---------------------------------------------------------------------------------------------- the slice

queued() { [[ $provisioning != on-demand ]]; }

# Sets state: NONE, READY, or the service's own name for it.
look() {
  local call=("${tpus[@]}" tpu-vm describe "$SRSJAX_TPU" "${where[@]}" '--format=value(state)') errors
  queued && call=("${tpus[@]}" queued-resources describe "$SRSJAX_TPU" "${where[@]}" '--format=value(state.state)')
  if [[ $dry_run ]]; then
    step "${call[@]}"
    state=$assumed
    return
  fi
  errors=$(mktemp)
  if ! state=$("${call[@]}" 2>"$errors"); then
    if grep -qi 'not[ _]found' "$errors"; then
      state=NONE
    else
      cat "$errors" >&2
      rm -f "$errors"
      say "gcloud could not describe the state of $SRSJAX_TPU"
      exit 1
    fi
  fi
  rm -f "$errors"
  [[ $state != ACTIVE ]] || state=READY
}

create() {
  say "creating the slice $SRSJAX_TPU ($SRSJAX_TPU_TYPE, $provisioning)"
  local tier=()
  case $provisioning in
    spot) tier=(--spot) ;;
    reserved) tier=(--reserved) ;;
    flex) tier=(--provisioning-model=flex-start "--max-run-duration=${SRSJAX_MAX_DURATION:-24h}") ;;
  esac
  if queued; then
    step "${tpus[@]}" queued-resources create "$SRSJAX_TPU" "${where[@]}" "--node-id=$SRSJAX_TPU" \
      "--accelerator-type=$SRSJAX_TPU_TYPE" "--runtime-version=$SRSJAX_TPU_VERSION" ${tier[@]+"${tier[@]}"}
  else
    step "${tpus[@]}" tpu-vm create "$SRSJAX_TPU" "${where[@]}" \
      "--accelerator-type=$SRSJAX_TPU_TYPE" "--version=$SRSJAX_TPU_VERSION"
  fi
  assumed=READY
}

down() {
  if queued; then
    step "${tpus[@]}" queued-resources delete "$SRSJAX_TPU" "${where[@]}" --force
  else
    step "${tpus[@]}" tpu-vm delete "$SRSJAX_TPU" "${where[@]}"
  fi
}

up() {
  local told=
  while look && [[ $state != READY ]]; do
    case $state in
      NONE) create ;;
      SUSPENDED | PREEMPTED | TERMINATED)
        say "$SRSJAX_TPU is $state: deleting it to create it again"
        down
        ;;
      FAILED | STOPPED | STOPPING)
        say "$SRSJAX_TPU is $state; see why (${tpus[*]} $(queued && echo queued-resources || echo tpu-vm)" \
          "describe $SRSJAX_TPU ${where[*]}), then take it down and up again"
        exit 1
        ;;
      *)
        [[ $told == "$state" ]] || say "$SRSJAX_TPU is $state, waiting"
        told=$state
        sleep "$poll"
        ;;
    esac
  done
  copy
}

# Copies the checkout to every worker and mounts the storage there.
copy() {
  local folder=/tmp/srsjax
  [[ $dry_run ]] || folder=$(mktemp -d)
  step tar -czf "$folder/srsjax.tar.gz" --exclude=__pycache__ -C "$root" \
    pyproject.toml .python-version README.md LICENSE srsjax configs launch
  step "${tpus[@]}" tpu-vm scp "$folder/srsjax.tar.gz" "$SRSJAX_TPU:" "${where[@]}" --worker=all
  remote all "mkdir -p srsjax && tar -xzf srsjax.tar.gz -C srsjax && $worker setup $(printf %q "$SRSJAX_STORAGE")"
  [[ $dry_run ]] || rm -rf "$folder"
}

# ---------------------------------------------------------------------------------------------- the program

# Runs a shell command on a worker (its number, or all).
remote() { step "${tpus[@]}" tpu-vm ssh "$SRSJAX_TPU" "${where[@]}" "--worker=$1" "--command=$2"; }

stop() { remote all "$worker stop"; }

status() {
  look
  [[ $dry_run ]] || echo "$SRSJAX_TPU is $state"
  [[ $state != READY && ! $dry_run ]] || remote all "$worker status"
}

run() {
  launch "$@"
  finish
}

launch() {
  if ! remote all "$worker start$(printf ' %q' "$@")"; then
    say "a worker could not start it"
    look
    condition=$([[ $state == READY ]] && echo 1 || echo preempted)
    return
  fi
  observe
}

logs() {
  observe
  finish
}

# Ends this script with the exit code of the program.
finish() {
  case $condition in
    preempted | lost)
      say "the slice was preempted; loop with the same command resumes"
      exit 1
      ;;
    75) say "stopped and saved; the same command goes on" ;;
  esac
  exit "$condition"
}

# Follows the log of worker 0 until the program has ended on all workers; sets condition to its exit code, or preempted.
observe() {
  local failures=0
  while :; do
    remote 0 "$worker follow" || true # the connection may break; the workers' status decides
    if collect; then
      failures=0
      [[ $condition == running ]] || return 0
    else
      look
      if [[ $state != READY ]]; then
        condition=preempted
        return
      fi
      failures=$((failures + 1))
      if [[ $failures -ge 10 ]]; then
        say "the workers cannot be reached although $SRSJAX_TPU is $state"
        exit 1
      fi
    fi
    sleep "$poll"
  done
}

# Sets condition from all workers, in this order of priority: running, wrong input, saved stop, any other failure.
collect() {
  local found one
  if [[ $dry_run ]]; then
    remote all "$worker status"
    condition=0
    return
  fi
  found=$(remote all "$worker status" 2>/dev/null | sed -n 's/^.*srsjax-status \([a-z0-9]*\).*$/\1/p') || return 1
  [[ $found ]] || return 1
  for one in running 2 75 lost none; do
    if grep -qx "$one" <<<"$found"; then
      condition=$one
      [[ $one != none ]] || fail "nothing was started on $SRSJAX_TPU"
      return
    fi
  done
  condition=$(grep -qvx 0 <<<"$found" && echo 1 || echo 0)
}

loop() {
  while :; do
    up
    launch "$@"
    case $condition in
      75) say "stopped and saved: resuming" ;;
      preempted | lost) say "the slice was preempted: resuming on a new one" ;;
      *) break ;;
    esac
  done
  [[ ! $dry_run ]] || echo "# exit code 75: again; preempted: $(down 2>/dev/null), then all of this again"
  finish
}

main "$@"
