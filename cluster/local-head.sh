#!/usr/bin/env bash
# Starts a Ray head on this machine, with token authentication, ready for `ray job submit`.
# Stop it with: .venv/bin/ray stop
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PATH="$PWD/.venv/bin:$PATH" # jobs start with the head's PATH: their `python` is this environment's
export PATH RAY_AUTH_MODE=token
ray get-auth-token --generate >/dev/null # ~/.ray/auth_token, made where it is missing
ray start --head --port "${RAY_PORT:-6379}" --dashboard-host 127.0.0.1 --dashboard-port "${RAY_DASHBOARD_PORT:-8265}" "$@"

cat <<TEXT

Submit a job, from the root of the checkout, with an absolute --root:

  RAY_AUTH_MODE=token .venv/bin/ray job submit --address http://127.0.0.1:${RAY_DASHBOARD_PORT:-8265} \\
      --working-dir . -- python -m curation.run RECIPE --root /absolute/DIR
TEXT
