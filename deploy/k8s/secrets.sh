#!/usr/bin/env bash
# Prints the fleet's Secrets, for `kubectl apply -f -`, from what deploy/secrets.sh made.
#   bash deploy/k8s/secrets.sh [FOLDER] | kubectl apply -f -
set -euo pipefail
folder=${1:-$(dirname "$0")/../secrets}

secret() {  # NAME FILE...
  printf -- '---\napiVersion: v1\nkind: Secret\nmetadata: { name: %s, namespace: training }\ndata:\n' "$1"
  for file in "${@:2}"; do
    printf '  %s: %s\n' "$(basename "$file")" "$(base64 < "$file" | tr -d '\n')"
  done
}
secret broker-users "$folder/users.acl"
for role in worker console metrics flower; do
  secret "broker-$role" "$folder/$role"/TRAINING_*
done
