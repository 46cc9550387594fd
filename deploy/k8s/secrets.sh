#!/usr/bin/env bash
# Prints the fleet's Secrets for `kubectl apply -f -`, from the output of deploy/secrets.sh.
#   bash deploy/k8s/secrets.sh [FOLDER] | kubectl apply -f -
set -euo pipefail
folder=${1:-$(dirname "$0")/../secrets}

secret() {  # NAME [KEY=]FILE...
  printf -- '---\napiVersion: v1\nkind: Secret\nmetadata: { name: %s, namespace: training }\ndata:\n' "$1"
  for entry in "${@:2}"; do
    file=${entry#*=}
    [ "$file" = "$entry" ] && key=$(basename "$file") || key=${entry%%=*}
    printf '  %s: %s\n' "$key" "$(base64 < "$file" | tr -d '\n')"
  done
}
ca=()
if [ -e "$folder/broker.crt" ]; then
  ca=("$folder/ca.crt")
  secret broker-certificate "${ca[@]}" "tls.crt=$folder/broker.crt" "tls.key=$folder/broker.key"
fi
secret broker-users "$folder/users.acl"
for role in worker console metrics flower; do
  secret "broker-$role" "$folder/$role"/TRAINING_* "${ca[@]}"
done
