#!/usr/bin/env bash
# Creates the fleet's passwords and the files with them. Existing files are kept.
#   bash deploy/secrets.sh [FOLDER] [SCHEME://HOST:PORT/DB]
# FOLDER (deploy/secrets) then holds users.acl for the broker and, for each role, a folder of files
# named like settings, for TRAINING_SECRETS_DIR. The address is that of the broker for these roles.
# Only the owner may enter FOLDER; a container's user may read the files in it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-$here/secrets}
address=${2:-redis://valkey:6379/0}
mkdir -p "$folder"
chmod 700 "$folder"

made() { head -c 24 /dev/urandom | od -An -v -tx1 | tr -d ' \n'; }
once() { [ -e "$1" ] || printf '%s' "$2" > "$1"; }

rules=$(cat "$here/valkey/users.acl.in")
for role in admin worker backend console metrics flower; do
  mkdir -p "$folder/$role"
  once "$folder/$role/password" "$(made)"
  password=$(cat "$folder/$role/password")
  once "$folder/$role/TRAINING_BROKER_URL" "${address//:\/\//://$role:$password@}"  # of each sentinel
  hash=$(printf '%s' "$password" | sha256sum | cut -d ' ' -f 1)
  rules=${rules//#${role^^}_SHA256/#$hash}
done
mkdir -p "$folder/grafana" "$folder/huggingface" "$folder/alertmanager"
mkdir -p "$folder/tenants"  # TENANT/NAME: files of the operator, which this script leaves as they are
once "$folder/flower/TRAINING_FLOWER_BASIC_AUTH" "operator:$(made)"
once "$folder/grafana/password" "$(made)"
once "$folder/alertmanager/webhook_url" "http://127.0.0.1:9/"  # your receiver of alerts
once "$folder/huggingface/token" ""  # for models that require an account
# The server does not accept comments in the file.
grep '^user ' <<< "$rules" > "$folder/users.acl.new"
mv "$folder/users.acl.new" "$folder/users.acl"
find "$folder" -path "$folder/tenants/*" -prune -o -type f -exec chmod 444 {} +
find "$folder" -mindepth 1 -path "$folder/tenants/*" -prune -o -mindepth 1 -type d -exec chmod 755 {} +
