# Sourced by the other scripts: makes .venv with the locked dependencies, once per lock file.
# Needs Python >= 3.11 and nothing else; says in one line what is missing. Sets VENV.
# A .venv that was made in another place (a moved clone) is made anew.
# Usage: . scripts/bootstrap.sh; prepare requirements.lock [requirements-dev.lock]

VENV="$PWD/.venv"

find_python() {
  local name
  for name in "${PYTHON:-}" python3.13 python3.12 python3.11 python3 python; do
    [ -n "$name" ] && command -v "$name" >/dev/null 2>&1 || continue
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      printf '%s' "$name"
      return
    fi
  done
  echo "error: no Python >= 3.11 found; install one, or set PYTHON=/path/to/python" >&2
  exit 2
}

# Whether the programs in .venv call that .venv: a clone that was moved or copied has another's paths.
is_at_home() {
  local named
  named="$(sed -n '1,2s/^[^/]*\(\/.*\/bin\)\/python.*/\1/p' "$VENV/bin/gtx" | head -n 1)"
  [ -z "$named" ] || [ "$named" -ef "$VENV/bin" ]
}

prepare() {
  local stamp lock python
  if [ -f "$VENV/bin/gtx" ] && ! is_at_home; then
    echo "This clone was moved: its .venv names another place; making it anew" >&2
    rm -rf "$VENV"
  fi
  stamp="$(cat "$@" pyproject.toml | cksum)"
  if [ -x "$VENV/bin/gtx" ] && grep -qsxF "$*: $stamp" "$VENV/.prepared"; then
    return
  fi
  if [ ! -x "$VENV/bin/python" ]; then
    python="$(find_python)" || exit 2
    echo "Making .venv with $("$python" --version)" >&2
    "$python" -m venv "$VENV" 2>/dev/null || {
      rm -rf "$VENV"
      echo "error: '$python -m venv .venv' failed; install Python's venv module (Debian: apt install python3-venv)" >&2
      exit 2
    }
  fi
  echo "Installing the locked dependencies (once; this can take a minute)" >&2
  for lock in "$@"; do
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r "$lock" || {
      echo "error: installing $lock failed; see the lines above, check the network, then run this again" >&2
      exit 2
    }
  done
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable . || {
    echo "error: installing the project itself into .venv failed; see the lines above" >&2
    exit 2
  }
  printf '%s\n' "requirements.lock: $(cat requirements.lock pyproject.toml | cksum)" "$*: $stamp" >"$VENV/.prepared"
}
