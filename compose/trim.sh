# Leave in an installed environment only what runs. Usage: sh trim.sh DIRECTORY ROLE
set -eu
cd "$1"
find . -type d \( -name __pycache__ -o -name tests -o -name test \) -prune -exec rm -rf {} +
find . -type f \( -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.c' -o -name '*.h' \) -delete
# Bindings were compiled against cffi; what runs is its backend, a module of its own.
rm -rf lib/python3*/site-packages/pycparser lib/python3*/site-packages/cffi
if [ "$2" = validator ]; then # no node simulates or measures
  rm -rf lib/python3*/site-packages/gridtokenx/lab/sim lib/python3*/site-packages/gridtokenx/lab/bench
fi
find bin -mindepth 1 ! -name 'python*' ! -name gtx -delete
bin/python -m compileall -q --invalidation-mode unchecked-hash lib
find . -exec touch --no-dereference --date=@315532800 {} +
