#!/usr/bin/env bash
# Makes the fleet's passwords, once, and what holds them; a file that is there stays as it is.
#   bash deploy/secrets.sh [FOLDER] [SCHEME://HOST:PORT/DB]
# FOLDER (deploy/secrets) then holds users.acl for the broker and, for each role, a folder of files
# named like settings, for TRAINING_SECRETS_DIR. The address is the broker's, as the roles see it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-$here/secrets}
address=${2:-redis://valkey:6379/0}
umask 077
mkdir -p "$folder"

made() { head -c 24 /dev/urandom | od -An -v -tx1 | tr -d ' \n'; }
once() { [ -e "$1" ] || printf '%s' "$2" > "$1"; }

rules=$(cat "$here/valkey/users.acl.in")
for role in admin worker backend console metrics flower; do
  mkdir -p "$folder/$role"
  once "$folder/$role/password" "$(made)"
  password=$(cat "$folder/$role/password")
  once "$folder/$role/TRAINING_BROKER_URL" "${address%%://*}://$role:$password@${address#*://}"
  hash=$(printf '%s' "$password" | sha256sum | cut -d ' ' -f 1)
  rules=${rules//#${role^^}_SHA256/#$hash}
done
once "$folder/flower/TRAINING_FLOWER_BASIC_AUTH" "operator:$(made)"
# The server reads no comments.
grep '^user ' <<< "$rules" > "$folder/users.acl"
