# shellcheck shell=bash
# Shared by the scripts of this folder; they set root (the checkout) and dry_run before they source it.
# shellcheck disable=SC2154

say() { printf 'srsjax: %s\n' "$*" >&2; }

fail() {
  say "$*"
  exit 2
}

# Runs a command, or prints it in a dry run.
step() {
  if [[ $dry_run ]]; then
    printf '%q' "$1"
    printf ' %q' "${@:2}" && echo
  else
    "$@"
  fi
}

# Whether python -m srsjax.$1 exists.
known_command() { [[ $1 =~ ^[a-z]+$ ]] && grep -qs '^if __name__ == "__main__":' "$root/srsjax/$1.py"; }

commands() {
  local file names=
  for file in $(cd "$root/srsjax" && grep -l '^if __name__ == "__main__":' -- *.py); do
    names="$names, ${file%.py}"
  done
  echo "${names#, }"
}

# Fails unless all variables of these names are set.
need() {
  local name
  for name in "$@"; do
    [[ ${!name:-} ]] || fail "$name is not set; bash launch/${0##*/} --help says what it is"
  done
}

# Checks a command line of srsjax ($2...): the command exists, its folders are on the shared storage mounted at $1.
check_program() {
  local shared=$1 argument folder before=''
  shift
  known_command "$1" || fail "no command $1, expected $(commands)"
  for argument in "$@"; do
    folder=
    case $before in --run_dir | --run | --output) folder=$argument ;; esac
    case $argument in --run_dir=* | --run=* | --output=*) folder=${argument#*=} ;; esac
    case $folder/ in
      "$shared"/*) [[ $folder/ != */../* ]] || folder=.. ;;
      /?* | '~'* | ../* | */../* | *://*) folder=.. ;;
      *) folder= ;;
    esac
    [[ $folder != .. ]] || fail "$argument: expected a path in the shared storage: relative, or below $shared"
    before=$argument
  done
}
