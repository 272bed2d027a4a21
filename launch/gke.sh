#!/usr/bin/env bash
# Runs srsjax on TPU slices or GPU nodes of a GKE cluster, as a JobSet.
set -euo pipefail

usage() {
  cat <<'END'
usage: bash launch/gke.sh [--dry-run] SUBCOMMAND

  run COMMAND [ARGUMENTS]     python -m srsjax.COMMAND on every host; follows the log of host 0. Ctrl-C only
                              stops following: the program keeps running
  manifest COMMAND [...]      print the manifest that run applies
  logs                        follow the log again
  status                      the JobSet and its pods
  stop                        delete the JobSet: SIGTERM, training saves. run with the same command resumes

  export SRSJAX_NAME=ctr SRSJAX_IMAGE=us-docker.pkg.dev/my-project/srsjax/srsjax:tpu SRSJAX_STORAGE=gs://my-bucket/ctr
  export SRSJAX_ACCELERATOR=tpu-v6e-slice SRSJAX_TOPOLOGY=4x4 SRSJAX_HOSTS=4 SRSJAX_CHIPS=4
  bash launch/gke.sh run train --config ctr.py --run_dir runs/ctr

The image is built from launch/Dockerfile. The cluster needs JobSet 0.10 or newer (https://jobset.sigs.k8s.io) and a node
pool with these accelerators; for a bucket, its Cloud Storage FUSE driver and a service account that may write to it.
Programs run in /mnt/srsjax, where the storage is mounted, so relative paths (runs/, stores/) are on it.

Exit code 75 of training (stopped, saved) and preemption restart it without limit; exit code 2 (wrong input) ends it at
once; a crash restarts it at most SRSJAX_RESTARTS times.

--dry-run prints the commands without running them.

Environment variables:
  SRSJAX_NAME              name of the JobSet: lower-case letters, digits and dashes
  SRSJAX_IMAGE             the image
  SRSJAX_STORAGE           gs://BUCKET[/FOLDER], or the name of a PersistentVolumeClaim (ReadWriteMany, Filestore)
  SRSJAX_ACCELERATOR       label of the nodes: tpu-v6e-slice, tpu-v5-lite-podslice, ..., or nvidia-h100-80gb, nvidia-l4, ...
  SRSJAX_TOPOLOGY          topology of a TPU slice: 4x4, 2x2x2, ...
  SRSJAX_HOSTS             hosts of the slice, or GPU nodes; by default 1
  SRSJAX_CHIPS             TPU chips or GPUs per host; by default 4 and 8
  SRSJAX_SPOT              yes: use spot nodes
  SRSJAX_SERVICE_ACCOUNT   Kubernetes service account of the pods; by default default
  SRSJAX_GRACE             seconds from SIGTERM to SIGKILL; by default 600
  SRSJAX_RESTARTS          restarts after crashes; by default 10
END
}

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
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
    run | manifest) [[ $# -ge 2 ]] || fail "$1: expected a command of srsjax: $(commands)" ;;
    logs | status | stop) [[ $# == 1 ]] || fail "$1: expected no arguments, found $2" ;;
    *) fail "no subcommand $1, expected run, manifest, logs, status or stop" ;;
  esac
  name=${SRSJAX_NAME:-}
  need SRSJAX_NAME
  # A pod's name, NAME-workers-0-HOST-XXXXX, is a DNS label of at most 63 characters.
  [[ $name =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ && ${#name} -le 40 ]] ||
    fail "SRSJAX_NAME=$name: expected small letters, digits and dashes, a letter first, at most 40 characters"
  case $1 in
    run | manifest) check_program /mnt/srsjax "${@:2}" && settings ;;
  esac
  "$@"
}

settings() {
  need SRSJAX_IMAGE SRSJAX_STORAGE SRSJAX_ACCELERATOR
  case $SRSJAX_ACCELERATOR in
    tpu*)
      kind=tpu
      [[ ${SRSJAX_TOPOLOGY:-} =~ ^[0-9]+x[0-9]+(x[0-9]+)?$ ]] ||
        fail "SRSJAX_TOPOLOGY=${SRSJAX_TOPOLOGY:-}: expected that of the slice, such as 4x4 or 2x2x2"
      ;;
    nvidia-*) kind=gpu ;;
    *) fail "SRSJAX_ACCELERATOR=$SRSJAX_ACCELERATOR: expected a label such as tpu-v6e-slice or nvidia-h100-80gb" ;;
  esac
  hosts=${SRSJAX_HOSTS:-1}
  chips=${SRSJAX_CHIPS:-$([[ $kind == tpu ]] && echo 4 || echo 8)}
  grace=${SRSJAX_GRACE:-600}
  restarts=${SRSJAX_RESTARTS:-10}
  whole SRSJAX_HOSTS "$hosts" && whole SRSJAX_CHIPS "$chips" && whole SRSJAX_GRACE "$grace"
  [[ $restarts == 0 ]] || whole SRSJAX_RESTARTS "$restarts"
  if ! [[ $SRSJAX_STORAGE =~ ^(gs://[a-z0-9][a-z0-9._-]*(/[A-Za-z0-9._/-]+)?|[a-z0-9][a-z0-9.-]*)$ ]]; then
    fail "SRSJAX_STORAGE=$SRSJAX_STORAGE: expected gs://BUCKET[/FOLDER] or the name of a PersistentVolumeClaim"
  fi
}

whole() { [[ $2 =~ ^[1-9][0-9]*$ ]] || fail "$1=$2: expected a whole number of at least 1"; }

# ---------------------------------------------------------------------------------------------- the manifest

# A string in JSON's quoting, which is valid YAML.
quoted() {
  local text=$1
  text=${text//\\/\\\\}
  text=${text//\"/\\\"}
  text=${text//$'\n'/\\n}
  text=${text//$'\t'/\\t}
  text=${text//$'\r'/\\r}
  printf '"%s"' "$text"
}

# Arguments of a container. Kubernetes would expand $(NAME) in them; $$ escapes $.
arguments() {
  local argument all=
  for argument in "$@"; do
    all="$all, $(quoted "${argument//\$/\$\$}")"
  done
  echo "[${all#, }]"
}

node_selector() {
  local label=cloud.google.com/gke-accelerator topology=
  if [[ $kind == tpu ]]; then
    label=cloud.google.com/gke-tpu-accelerator
    topology=", cloud.google.com/gke-tpu-topology: $SRSJAX_TOPOLOGY"
  fi
  echo "{$label: $(quoted "$SRSJAX_ACCELERATOR")$topology${SRSJAX_SPOT:+, cloud.google.com/gke-spot: \"true\"}}"
}

volume() {
  local path=${SRSJAX_STORAGE#gs://} only=
  if [[ $SRSJAX_STORAGE != gs://* ]]; then
    echo "{name: shared, persistentVolumeClaim: {claimName: $(quoted "$SRSJAX_STORAGE")}}"
    return
  fi
  path=${path%/}
  [[ $path != */* ]] || only=",only-dir=${path#*/}"
  # A checkpoint is committed by renaming its folder, which gcsfuse refuses above this many files (default 0).
  local options="implicit-dirs,uid=1000,gid=1000,rename-dir-limit=200000$only"
  echo "{name: shared, csi: {driver: gcsfuse.csi.storage.gke.io," \
    "volumeAttributes: {bucketName: $(quoted "${path%%/*}"), mountOptions: $(quoted "$options")}}}"
}

# Fills in the template line by line with plain string replacement: values may contain any character.
manifest() {
  local line annotations='{}'
  [[ $SRSJAX_STORAGE != gs://* ]] || annotations='{gke-gcsfuse/volumes: "true"}'
  local keys=(NAME RESTARTS HOSTS GRACE CHIPS POD_ANNOTATIONS SERVICE_ACCOUNT NODE_SELECTOR IMAGE VOLUME ARGUMENTS)
  local values=("$name" "$restarts" "$hosts" "$grace" "$chips" "$annotations"
    "$(quoted "${SRSJAX_SERVICE_ACCOUNT:-default}")" "$(node_selector)" "$(quoted "$SRSJAX_IMAGE")" "$(volume)"
    "$(arguments "$@")")
  local i key value
  while IFS= read -r line; do
    [[ $line =~ ^\ *# ]] && continue
    for i in "${!keys[@]}"; do
      key=__${keys[i]}__ value=${values[i]}
      while [[ $line == *"$key"* ]]; do
        line=${line%%"$key"*}$value${line#*"$key"}
        [[ ${keys[i]} != ARGUMENTS ]] || break # user arguments are not searched for keys
      done
    done
    printf '%s\n' "$line"
  done <"$root/launch/gke-$kind.yaml"
}

# ---------------------------------------------------------------------------------------------- the program

run() {
  local text
  text=$(manifest "$@")
  if [[ $dry_run ]]; then
    echo "kubectl apply --filename=- <<'END'"
    printf '%s\nEND\n' "$text"
  else
    # A finished JobSet of this name is deleted first; a running one is left as it is.
    case $(terminal) in
      Completed | Failed) kubectl delete jobset "$name" ;;
    esac
    printf '%s\n' "$text" | kubectl apply --filename=-
  fi
  logs
}

# Completed or Failed once the JobSet has ended.
terminal() { step kubectl get jobset "$name" --ignore-not-found '--output=jsonpath={.status.terminalState}'; }

# Follows host 0 across restarts until the program ends: 0 completed, 2 wrong input, 1 any other failure.
logs() {
  local host="jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0" ended='' followed=''
  local pod=(kubectl get pods "--selector=$host" --field-selector=status.phase=Running --output=name)
  local call=(kubectl logs "--selector=$host" --container=srsjax --tail=-1)
  if [[ $dry_run ]]; then
    step "${pod[@]}"
    step "${call[@]}" --follow
    terminal
    return
  fi
  while [[ ! $ended ]]; do
    if [[ $("${pod[@]}") ]]; then
      followed=yes
      "${call[@]}" --follow || true # the connection may break; the state of the JobSet decides
    fi
    ended=$(terminal)
    [[ $ended ]] || sleep "${SRSJAX_POLL:-10}"
  done
  [[ $followed ]] || "${call[@]}" || true # it ended before its log was followed
  [[ $ended != Completed ]] || return 0
  say "$name failed; kubectl describe jobset $name shows why"
  # The reason that JobSet gives when a rule with the action FailJobSet matched.
  [[ $(kubectl get jobset "$name" '--output=jsonpath={.status.conditions[?(@.type=="Failed")].reason}') \
    != FailJobSetFailurePolicyAction ]] || exit 2
  exit 1
}

status() {
  step kubectl get jobset "$name"
  step kubectl get pods "--selector=jobset.sigs.k8s.io/jobset-name=$name" --output=wide
}

stop() { step kubectl delete jobset "$name"; }

main "$@"
